"""Recipes: values are checked once, unknown keys name the nearest, precedence is default < file < override."""

import inspect

import pytest

from schane_cli.errors import BadRequest
from schane_cli.losses.contrastive import SchaneLoss
from schane_cli.recipe import (
    SYNONYMS,
    LossRecipe,
    Recipe,
    build_recipe,
    check_keys,
    find_recipe,
    parse_set,
    parse_yaml,
    read_recipe,
    recipe_fields,
    recipe_names,
    resolve_recipe,
    saved_recipe,
    to_yaml,
)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_has_a_header(name: str) -> None:
    path = find_recipe(name)
    build_recipe(read_recipe(path))
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Command:" in line and "schane" in line for line in header)


def test_a_resolved_recipe_reads_back_to_itself() -> None:
    recipe = build_recipe({}, {"train.lr": 3e-4, "model.args": {"bn_eps": 1e-3}, "data.root": "/x"})
    assert build_recipe(parse_yaml(to_yaml(recipe), "text")) == recipe


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
def test_numbers_in_scientific_notation_are_numbers(text: str) -> None:
    assert parse_set([f"train.lr={text}"]) == {"train.lr": 1e-4}
    assert parse_yaml(f"args: {{bn_eps: {text}}}", "text") == {"args": {"bn_eps": 1e-4}}


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(BadRequest, match=r"unknown recipe key 'loss.temprature'; did you mean 'loss.temperature'"):
        build_recipe({"loss": {"temprature": 0.1}})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lr", "train.lr"),
        ("train.learning_rate", "train.lr"),
        ("learning_rate", "train.lr"),
        ("bs", "train.batch_size"),
        ("temperature", "loss.temperature"),
        ("train.temperature", "loss.temperature"),
        ("contrastive-weight", "loss.contrastive_weight"),
        ("loss.lambda", "loss.contrastive_weight"),
        ("data.img_size", "data.image_size"),
        ("loss", "loss.name"),
        ("trian.epochs", "train.epochs"),
        ("loss.temprature", "loss.temperature"),
        ("batchsize", "train.batch_size"),
        ("optimiser", "train.optimizer"),
        ("label_smothing", "loss.label_smoothing"),
    ],
)
def test_a_wrong_key_is_answered_with_the_one_that_was_meant(given: str, meant: str) -> None:
    with pytest.raises(BadRequest, match=f"unknown recipe key '{given}'; did you mean '{meant}'"):
        check_keys([given])


def test_every_synonym_stands_for_a_key_and_hides_none() -> None:
    assert set(SYNONYMS.values()) <= set(recipe_fields())
    assert not SYNONYMS.keys() & {key.rpartition(".")[2] for key in recipe_fields()}


def test_a_section_given_a_value_names_the_key_in_it() -> None:
    with pytest.raises(BadRequest, match="loss is a section of values, got 'ce'; did you mean 'loss.name'"):
        build_recipe({"loss": "ce"})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("loss.temperature", 0, "loss.temperature"),
        ("loss.temperature", "nan", "loss.temperature"),
        ("loss.hardness", -1, "loss.hardness"),
        ("loss.name", "schan", "loss.name"),
        ("train.lr", "fast", "train.lr"),
        ("train.epochs", -1, "train.epochs"),
        ("data.val_fraction", 1.5, "data.val_fraction"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(key: str, value: object, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        build_recipe({}, {key: value})


def test_a_chunk_larger_than_the_batch_is_refused() -> None:
    with pytest.raises(BadRequest, match="chunk_size 64 is larger than batch_size 32"):
        build_recipe({}, {"train.chunk_size": 64, "train.batch_size": 32})


def test_flags_win_over_the_file_and_what_changed_is_told() -> None:
    recipe, changed = resolve_recipe(recipe=None, dataset=None, overrides={"loss.temperature": 0.3})
    assert recipe.data.dataset == "digits"
    assert recipe.loss.temperature == 0.3
    assert changed == ["loss.temperature 0.3 (recipe digits: 0.5)"]


def test_a_source_of_one_s_own_starts_from_the_recipe_photos() -> None:
    recipe, _ = resolve_recipe(recipe=None, dataset="folder:/x", overrides={})
    assert recipe == build_recipe(read_recipe(find_recipe("photos")), {"data.dataset": "folder:/x"})
    assert recipe.train.seen_images is not None
    given, _ = resolve_recipe(recipe=None, dataset="csv:/x.csv", overrides={"train.epochs": 3})
    assert (given.train.epochs, given.train.seen_images) == (3, 0)


def test_a_dataset_without_a_recipe_of_its_own_starts_from_the_defaults() -> None:
    recipe, _ = resolve_recipe(recipe=None, dataset="mine", overrides={})
    assert recipe == build_recipe({}, {"data.dataset": "mine"})


def test_the_loss_has_the_same_defaults_in_the_recipe_and_in_the_library() -> None:
    signature = inspect.signature(SchaneLoss.__init__).parameters
    for name in ("temperature", "hardness", "positives", "stop_gradient"):
        assert signature[name].default == LossRecipe.model_fields[name].default


def test_every_key_has_a_one_line_description() -> None:
    for key, field in recipe_fields().items():
        assert 5 < len(field.description or "") < 100, key


def test_a_recipe_file_that_is_no_mapping_or_no_yaml_is_refused(tmp_path) -> None:
    for text, said in (("- 1", "must be a mapping"), ("a: [", "not valid YAML")):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        with pytest.raises(BadRequest, match=said):
            read_recipe(path)


def test_yaml_tags_run_nothing(tmp_path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'owned'}']")
    with pytest.raises(BadRequest):
        read_recipe(path)
    assert not (tmp_path / "owned").exists()


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3  # type: ignore[misc]


def test_a_run_of_0_1_0_keeps_the_batchnorm_statistics_it_was_trained_with() -> None:
    tree = Recipe().model_dump(mode="json")
    assert saved_recipe(tree).train.batchnorm == "auto"
    del tree["train"]["batchnorm"]
    assert saved_recipe(tree).train.batchnorm == "running"


def test_an_integer_too_long_to_print_is_refused_where_it_is_read() -> None:
    with pytest.raises(BadRequest, match="holds an integer of more than 300 digits"):
        parse_set([f"model.args={{a: 0x{'f' * 5000}}}"])
    assert parse_set(["seed=12"]) == {"seed": 12}
