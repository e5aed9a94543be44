"""The licence of a base: from its own files or not at all."""

from mlx_lora.model.licence import base_licence, read_licence


def test_a_licence_is_read_from_the_card_then_from_the_licence_file(tmp_path):
    assert read_licence(tmp_path) is None
    (tmp_path / "LICENSE.txt").write_text("MIT License\n\nCopyright")
    assert read_licence(tmp_path) == "mit"
    (tmp_path / "README.md").write_text("---\nlibrary_name: mlx\nlicense: Apache-2.0\n---\n# A model\nlicense: other\n")
    assert read_licence(tmp_path) == "apache-2.0"


def test_a_licence_that_is_not_named_is_not_guessed(tmp_path):
    (tmp_path / "README.md").write_text("# A model\nlicense: mit\n")
    (tmp_path / "LICENSE").write_text("Terms of our own")
    assert read_licence(tmp_path) is None


def test_the_built_in_model_has_one():
    assert base_licence("smollm2-135m-instruct") == "apache-2.0"
