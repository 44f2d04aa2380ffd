"""Recipes: what they may hold, and that all faults come at once."""

from dataclasses import asdict

import pytest

from dgl_runtime.errors import ConfigError
from dgl_train.model.methods import METHODS
from dgl_train.recipes.recipe import Recipe, read_recipe, recipe_names, write_recipe


def error_of(*args):
    with pytest.raises(ConfigError) as caught:
        read_recipe(*args)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_valid(name):
    assert isinstance(read_recipe(name), Recipe)


def test_a_recipe_names_only_what_differs_from_the_default(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\nlearning_rate = 1\n")
    expected = asdict(read_recipe("default")) | {"epochs": 3, "learning_rate": 1.0}
    assert asdict(read_recipe(path)) == expected


def test_overrides_come_last_and_take_the_type_of_the_setting():
    recipe = read_recipe("default", ["epochs=3", "learning_rate=1e-4", "epochs = 4", "pretrained="])
    assert (recipe.epochs, recipe.learning_rate, recipe.pretrained) == (4, 1e-4, "")


def test_recipes_are_laid_over_each_other_in_order(tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("epochs = 3\nbatch_size = 7\n")
    second.write_text("epochs = 4\n")
    recipe = read_recipe([first, second])
    assert (recipe.epochs, recipe.batch_size) == (4, 7)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_switches_are_true_or_false(text, value):
    assert read_recipe("default", [f"frame_positions={text}"]).frame_positions is value
    assert "frame_positions is '1', expected true or false" in error_of(
        "default", ["frame_positions=1"]
    )


def test_a_written_recipe_reads_back(tmp_path):
    recipe = read_recipe("default", ["learning_rate=1e-07", 'backbone=C:\\odd "name"'])
    write_recipe(tmp_path / "recipe.toml", recipe)
    assert read_recipe(tmp_path / "recipe.toml") == recipe


def test_all_faults_come_at_once(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('learning_rat = 0.1\nbatch_size = "many"\nepochs = true\nwarmup_fraction = 2\n')
    overrides = ["method=dgl", "caption_prompts=7", "num_frames=4.5", "max_grad_norm=nan", "seed"]
    assert error_of(path, overrides) == (
        f"recipe {path} has 9 faults: "
        "'seed' is not of the form key=value; "
        f"method is 'dgl', expected one of {', '.join(METHODS)}; "
        "caption_prompts is 7, expected an even whole number from 0; "
        "num_frames is '4.5', expected a whole number from 1; "
        "batch_size is 'many', expected a whole number from 2; "
        "epochs is True, expected a whole number from 1; "
        "warmup_fraction is 2, expected a number from 0 to 1; "
        "max_grad_norm is nan, expected a number above 0; "
        "'learning_rat' is not a setting (did you mean 'learning_rate'?)."
    )


def test_one_fault_reads_as_one():
    assert error_of("default", ["epochs=0"]) == (
        "recipe default has a fault: epochs is 0, expected a whole number from 1."
    )


def test_an_unknown_recipe_lists_those_there_are():
    names = ", ".join(recipe_names())
    assert error_of("shape") == (
        f"recipe 'shape' is neither a readable TOML file nor one of {names} "
        "(did you mean 'shapes'?)."
    )


def test_broken_toml_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("epochs 3\n")
    assert error_of(path).startswith(f"recipe {path} is not valid TOML: Expected '=' after a key")
