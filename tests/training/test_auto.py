import pytest

from training.auto import interpolate, resolve
from training.config import Recipe

IMAGENET = 1_281_167
AUTO = (
    "head.prototypes=auto",
    "teacher.momentum=auto",
    "teacher.temperature=auto",
    "teacher.warmup_temperature=auto",
)


def resolved(images, *overrides):
    return resolve(Recipe.load("dino-vits16", (*AUTO, *overrides)), images)


@pytest.mark.parametrize(
    ("images", "prototypes"),
    [(5_000, 1024), (20_000, 1024), (50_000, 2048), (100_000, 4096), (IMAGENET, 65536)],
)
def test_the_head_is_the_advised_one(images, prototypes):
    assert resolved(images)[0].head.prototypes == prototypes


@pytest.mark.parametrize(
    ("images", "temperature"),
    [
        (5_000, 0.02),
        (20_000, 0.02),
        # 0.02 x 3.5^(ln 2.5 / ln 25) and 0.02 x 3.5^(ln 5 / ln 25)
        (50_000, 0.0286),
        (100_000, 0.0374),
        (500_000, 0.07),
        (IMAGENET, 0.07),
    ],
)
def test_the_temperature_rises_with_the_data(images, temperature):
    teacher = resolved(images)[0].teacher
    assert teacher.temperature == temperature
    assert teacher.warmup_temperature == min(0.04, temperature)


@pytest.mark.parametrize(("epochs", "temperature"), [(99, 0.04), (100, 0.07)])
def test_a_short_run_keeps_its_temperature_low(epochs, temperature):
    assert resolved(IMAGENET, f"epochs={epochs}")[0].teacher.temperature == temperature


@pytest.mark.parametrize(
    ("images", "batch_size", "momentum"),
    [
        (5_000, 64, 0.99),  # 78 steps: 1 - 1 / 15.6 is below
        (20_000, 64, 0.99),  # 312: 1 - 1 / 62.4 is below
        (50_000, 64, 0.9936),  # 781: 1 - 1 / 156.2
        (100_000, 64, 0.9968),  # 1,562: 1 - 1 / 312.4
        (IMAGENET, 1024, 0.996),  # 1,251: 1 - 1 / 250.2, the published one
        (IMAGENET, 256, 0.999),  # 5,004: 1 - 1 / 1,000.8
        (IMAGENET, 64, 0.9995),  # 20,018: 1 - 1 / 4,003.6 is above
    ],
)
def test_the_teacher_averages_over_a_fifth_of_an_epoch(images, batch_size, momentum):
    found = resolved(images, f"batch_size={batch_size}")[0].teacher.momentum
    assert found == pytest.approx(momentum, abs=1e-5)


def test_each_number_found_is_explained():
    recipe, arithmetic = resolved(50_000, "batch_size=256")
    values = [
        f"head.prototypes = {recipe.head.prototypes}: 2048 for 50,000 images",
        f"teacher.momentum = {recipe.teacher.momentum}: ",
        f"teacher.temperature = {recipe.teacher.temperature}: 0.0286 for 50,000 images",
        f"teacher.warmup_temperature = {recipe.teacher.warmup_temperature}: ",
    ]
    assert len(arithmetic) == len(values)
    for line, value in zip(arithmetic, values, strict=True):
        assert line.startswith(value)


@pytest.mark.parametrize("images", [72, 1024])
def test_the_arithmetic_shown_for_less_than_an_epochs_fifth_divides_by_one(images):
    (momentum,) = (line for line in resolved(images)[1] if line.startswith("teacher.momentum"))
    assert "1 - 1 / 1," in momentum


def test_numbers_that_were_chosen_stay():
    recipe = Recipe.load("dino-vits16")
    assert resolve(recipe, 5_000) == (recipe, [])


def test_the_warm_up_starts_no_higher_than_a_chosen_temperature():
    recipe = Recipe.load(
        "dino-vits16", ("teacher.temperature=0.03", "teacher.warmup_temperature=auto")
    )
    assert resolve(recipe, 5_000)[0].teacher.warmup_temperature == 0.03


def test_interpolation_is_straight_in_logarithms_and_constant_outside():
    points = ((10, 1), (1000, 100), (10_000, 100))
    assert interpolate(points, 1) == pytest.approx(1)
    assert interpolate(points, 100) == pytest.approx(10)
    assert interpolate(points, 2000) == pytest.approx(100)
    assert interpolate(points, 10**6) == pytest.approx(100)
