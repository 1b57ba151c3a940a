import re
from types import SimpleNamespace
from typing import get_args

import pytest
from pydantic import BaseModel

from tests.data import ROOT
from training.config import RECIPES, Recipe, RecipeError, describe

BOXED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def leaves(section, prefix=""):
    for name, field in section.model_fields.items():
        kinds = [
            kind
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        for kind in kinds:
            yield from leaves(kind, f"{prefix}{name}({kind.__name__}).")
        yield pytest.param(field, id=prefix + name)


@pytest.fixture
def folder(tmp_path):
    def write(**recipes):
        for name, text in recipes.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return lambda name, *overrides: Recipe.load(str(tmp_path / f"{name}.yaml"), overrides)

    return SimpleNamespace(write=write, path=tmp_path)


@pytest.mark.parametrize("name", BOXED)
def test_every_recipe_in_the_box_is_valid(name):
    assert Recipe.load(name).name == name


@pytest.mark.parametrize("name", BOXED)
def test_the_record_of_a_run_is_a_recipe_again(name):
    recipe = Recipe.load(name)
    assert Recipe.check(recipe.model_dump(mode="json"), "record") == recipe


def test_overrides_reach_into_groups():
    overrides = ("epochs=3", "optimizer.lr=0.5", "model.patch_size=16")
    recipe = Recipe.load("imagenette-vitt8", overrides)
    assert (recipe.epochs, recipe.optimizer.lr, recipe.model.patch_size) == (3, 0.5, 16)


def test_an_objective_without_a_name_is_dino():
    recipe = Recipe.load("imagenette-vitt8", ("objective.targets=sinkhorn",))
    assert (recipe.objective.name, recipe.objective.targets) == ("dino", "sinkhorn")


def test_an_override_of_a_section_is_laid_over_it_as_in_a_file(folder):
    boxed = Recipe.load("imagenette-vitt8")
    load = folder.write(imagenette="base: imagenette-vitt8\ncrops: {local_count: 2}")
    recipe = Recipe.load("imagenette-vitt8", ("crops={local_count: 2}",))
    assert recipe == load("imagenette", "name=imagenette-vitt8")
    assert recipe.crops == boxed.crops.model_copy(update={"local_count": 2})
    resnet = Recipe.load("imagenette-vitt8", ("model={architecture: resnet18}",))
    assert resnet.model.drop_path == 0.1


def test_null_takes_a_section_back_to_its_default():
    recipe = Recipe.load("imagenette-vitt8", ("teacher=null", "objective={name: swav}"))
    assert recipe.teacher.momentum == 0.996


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("epoch=3",), "epoch: a recipe has no such key; did you mean epochs?"),
        (("optimizer.weight_deacy=1",), "optimizer.weight_deacy: .*mean optimizer.weight_decay?"),
        (("optimizer.learning_rate=1",), "optimizer.learning_rate: .*explain"),
        (("lr=1",), "did you mean optimizer.lr?"),
        (("objective.tagets=sinkhorn",), "objective.tagets: dino .*objective.targets"),
        (("objective={name: moco, epsilon: 1}",), "objective.epsilon: moco has no such key"),
        (("optimzer.lr=1",), "optimzer: .*did you mean optimizer?"),
        (("objective={name: moco, targets: 1}",), "objective.targets: moco .*explain"),
        (("zebra=1",), "zebra: a recipe has no such key; .*explain"),
        (("epochs=0",), "epochs: .*greater than 0"),
        (("head.prototypes=many",), "head.prototypes: "),
        (("seed=18446744073709551616",), "seed: .*less than 18446744073709551616"),
        (("pixels.channels=0",), "pixels.channels: .*greater than"),
        (("crops.blur=[2, .inf]",), r"crops: blur = \(2.0, inf\) is wider .* global_size = "),
        (("epochs",), "key=value"),
        (("epochs.x=1",), "epochs is a value"),
        (("epochs=[",), "epochs: .*no YAML"),
    ],
)
def test_a_wrong_key_is_named(overrides, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.load("imagenette-vitt8", overrides)


@pytest.mark.parametrize(
    ("recipe", "overrides", "messages"),
    [
        (
            "dino-vits16",
            ("objective={name: esvit}",),
            ("objective.name = esvit", "vit_small", "choose dino"),
        ),
        (
            "cifar10-simclr",
            ("crops.local_count=2", "crops.local_size=16"),
            ("objective.name = simclr", "crops.local_count = 0"),
        ),
        ("cifar10-simclr", ("teacher.momentum=0.9",), ("simclr has no teacher", "leave teacher")),
        ("table7-9-swav", ("teacher.momentum=0.9",), ("swav has no teacher", "leave teacher")),
        (
            "dino-vits16",
            ("objective.loss=mse", "objective.targets=sinkhorn"),
            ("objective.loss = mse", "objective.targets = sinkhorn", "choose centering"),
        ),
        (
            "dino-vits16",
            ("crops.local_size=90",),
            ("crops.local_size = 90", "model.patch_size = 16", "try 96"),
        ),
        (
            "dino-vits16",
            ("crops.global_size=8",),
            ("crops.global_size = 8", "try 16"),
        ),
        ("dino-vits16", ("evaluation.size=225",), ("evaluation.size = 225", "try 224")),
        ("dino-vits16", ("evaluation.resize=200",), ("evaluation.resize = 200", "224")),
        ("dino-vits16", ("model.window=14",), ("vit_small has no window", "leave it out")),
        ("esvit-swint-w7", ("model.patch_size=8",), ("swin_tiny has no patch_size",)),
        ("dino-resnet50", ("model.drop_path=0.2",), ("resnet50 has no drop_path",)),
        (
            "dino-vits16",
            ("accumulate=3",),
            ("batch_size = 1024", "accumulate = 3", "change either"),
        ),
        *(
            (name, ("head.prototypes=1024",), ("has no prototypes", "head.prototypes"))
            for name in ("table7-7-byol", "table7-8-moco", "cifar10-simclr")
        ),
        ("mnist-resnet18", ("pixels.mean=[0.1, 0.2]",), ("mean has 2 numbers", "channels = 1")),
        ("dino-vits16", ("pixels.channels=1",), ("mean has 3 numbers", "name 1")),
        ("mnist-resnet18", ("pixels.std=[0]",), ("std must be above 0",)),
        ("dino-vits16", ("crops.global_scale=[1.0, 0.4]",), ("crops.global_scale", "lesser")),
    ],
)
def test_what_does_not_hold_together_is_named_with_the_way_out(recipe, overrides, messages):
    with pytest.raises(RecipeError) as error:
        Recipe.load(recipe, overrides)
    for message in messages:
        assert message in str(error.value)


def test_the_way_out_of_another_network_is_one():
    with pytest.raises(RecipeError, match="swin_tiny has no patch_size") as error:
        Recipe.load("dino-vits16", ("model.architecture=swin_tiny", "model.patch_size=8"))
    way_out = str(error.value).split("'")[1]
    assert Recipe.load("dino-vits16", (way_out,)).model.architecture == "swin_tiny"


def test_colour_distortions_of_grey_data_are_no_fault():
    recipe = Recipe.load("mnist-resnet18", ("crops.jitter=0.8", "crops.grey=0.2"))
    assert recipe.pixels.channels == 1


def test_all_faults_are_named_at_once():
    with pytest.raises(RecipeError, match=r"optimizer\.lr: .*epoch: "):
        Recipe.load("dino-vits16", ("epoch=1", "optimizer.lr=-1"))


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(RecipeError, match="imagenette-vitt8"):
        Recipe.load("nonesuch")


def test_a_recipe_takes_over_its_base_key_by_key(folder):
    load = folder.write(
        below="name: old\ndata: x\nepochs: 7\nteacher: {momentum: 0.9, temperature: 0.05}\n"
        "optimizer: {clip_grad: 2.0}\nhead: {hidden: 9}\n",
        middle="base: below.yaml\nepochs: 8\nhead: null\n",
        top="base: middle.yaml\nteacher: {momentum: 0.8}\noptimizer: {clip_grad: null}\n"
        "head: {bottleneck: 5}\n",
    )
    recipe = load("top", "teacher.center_momentum=0.5")
    assert (recipe.name, recipe.data, recipe.epochs) == ("top", "x", 8)
    teacher = recipe.teacher
    assert (teacher.momentum, teacher.temperature, teacher.center_momentum) == (0.8, 0.05, 0.5)
    assert recipe.optimizer.clip_grad is None
    assert (recipe.head.hidden, recipe.head.bottleneck) == (2048, 5)


def test_network_and_objective_replace_their_base_as_a_whole(folder):
    load = folder.write(
        below="data: x\nmodel: {architecture: vit_tiny, patch_size: 8}\n"
        "objective: {name: dino, targets: sinkhorn, temperature: 0.2}\n",
        top="base: below.yaml\nmodel: {architecture: resnet18}\nobjective: {name: esvit}\n",
    )
    recipe = load("top")
    assert recipe.model.architecture == "resnet18"
    assert (recipe.objective.name, recipe.objective.temperature) == ("esvit", 0.1)


def test_a_base_may_be_a_recipe_in_the_box(folder):
    recipe = folder.write(own="base: dino-vits16\ndata: elsewhere\n")("own")
    assert (recipe.name, recipe.data, recipe.crops.local_count) == ("own", "elsewhere", 10)


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ({"a": "base: nonesuch\n"}, "a.yaml: base: no recipe 'nonesuch'; known: .*dino-vits16"),
        ({"a": "base: gone.yaml\n"}, "a.yaml: base: no recipe 'gone.yaml'"),
        ({"a": "base: a.yaml\n"}, "a is its own base"),
        ({"a": "base: b.yaml\n", "b": "base: a.yaml\n"}, "a is its own base .a -> b -> a."),
        ({"a": "base: [b]\n"}, "base = .'b'. is no recipe's name"),
        ({"a": "- 1\n"}, "holds no keys and values"),
        ({"a": "a: [\n"}, "is no YAML"),
    ],
)
def test_a_base_that_leads_nowhere_is_named(folder, recipes, message):
    load = folder.write(**recipes)
    with pytest.raises(RecipeError, match=message):
        load("a")


@pytest.mark.parametrize("field", list(leaves(Recipe)))
def test_every_key_says_when_to_change_it(field):
    assert field.description


def test_a_recipe_describes_every_key_with_its_value():
    described = {key: (value, when) for key, value, when in describe(Recipe.load("dino-vits16"))}
    assert described["teacher.temperature"][0] == "0.07"
    assert "long runs" in described["teacher.temperature"][1]
    assert described["objective.name"][0] == "dino"


def test_the_page_of_recipes_tells_of_each_in_the_box():
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)`", page, re.MULTILINE)) == set(BOXED)
