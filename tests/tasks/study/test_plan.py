"""From the file of a study to its runs."""

import re

import pytest

from tasks import config as cfg
from tasks.errors import ConfigError, TrainingError
from tasks.spec import make_task
from tasks.study.config import StudyConfig, read_study
from tasks.study.plan import check_folders, final_runs, screening_runs, trials_of
from tests.helpers.paths import ROOT
from zoo.files import write_text

HOLDOUT, OFFICIAL = {"data.split": "holdout"}, {"data.split": "official"}


def test_runs_are_the_trials_of_each_scheme_in_turn(make_study):
    runs = screening_runs(make_study(screening={"seeds": [0, 5], "overrides": HOLDOUT}))
    names = [(run.trial.scheme, run.trial.name, run.seed) for run in runs]
    assert names == [
        (scheme, name, seed)
        for pair in ((("rescale", "base"), ("bn", "base")), (("rescale", "gain"), ("bn", "smooth")))
        for scheme, name in pair
        for seed in (0, 5)
    ]
    by_name = {(run.trial.scheme, run.trial.name): run for run in runs if run.seed == 5}
    gain, smooth = by_name["rescale", "gain"].config, by_name["bn", "smooth"].config
    assert (gain.model.scheme, gain.model.options, gain.train.seed) == (
        "rescale",
        {"width": 0.25, "projection_gain": 2.0},
        5,
    )
    assert (smooth.model.scheme, smooth.label_smoothing, smooth.train.log_every) == ("bn", 0.1, 1)
    assert {run.config.data.split for run in runs} == {"holdout"}
    assert len({run.folder for run in runs}) == len(runs)


def test_a_grid_is_every_combination(make_study):
    grid = {"train.optimizer.lr": [0.1, 0.2], "model.options": [{}, {"width": 0.5}]}
    trials = trials_of(make_study(grid=grid, trials={}, schemes={"bn": {}}), "bn")
    found = [tuple(trial.overrides[1:]) for trial in trials]
    assert found == [
        (f"train.optimizer.lr={lr}", f"model.options={options}")
        for lr in (0.1, 0.2)
        for options in ("{}", "{width: 0.5}")
    ]
    for trial in trials:  # names are those of folders
        assert re.fullmatch(r"[\w.=,+-]+", trial.name)
    assert len({trial.name for trial in trials}) == 4


def test_final_runs_have_every_seed_and_one_evaluation(make_study):
    study = make_study()
    chosen = {scheme: trials_of(study, scheme)[1] for scheme in ("rescale", "bn")}
    runs = final_runs(study, chosen)
    assert [(run.trial.scheme, run.seed) for run in runs] == [("rescale", 0), ("bn", 0), ("rescale", 1), ("bn", 1)]
    for run in runs:
        assert (run.config.train.epochs, run.config.train.eval_every, run.config.data.split) == (3, 3, "official")


def test_one_setting_of_each_scheme_needs_no_trials(make_study):
    assert screening_runs(make_study(trials=None, schemes={"rescale": {}, "bn": {}})) == []


def test_overrides_of_the_command_line_are_in_every_run(make_study):
    study = make_study("train.batch_size=8", trials={"slow": {"train.optimizer.lr": 0.01}, "base": {}})
    assert {run.config.train.batch_size for run in screening_runs(study)} == {8}
    runs = screening_runs(study)
    assert [run.config.train.optimizer.lr for run in runs if run.trial.name == "slow"] == [0.01] * 2


BN = {"trials": {"one": {"label_smoothing": 0.1}, "two": {"label_smoothing": 0.2}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": {"rescale": {}, "bn": BN}}, "equal numbers of trials, not rescale 1, bn 3"),
        (
            {"overrides": {"train.early_stopping": {"patience": 2}}},
            "trials/rescale/base: train.early_stopping: runs of a study must be equally long",
        ),
        ({"trials": {"a": {}, "b": {"label_smoothing": 0.0}}}, "rescale/b/seed0 and .*/a/seed0 are the same run"),
        ({"trials": {"a": {}, "b": {"train.workers": 2}}}, "rescale/b/seed0 and .*/a/seed0 are the same run"),
        ({"trials": {"a": {}, "b": {"train.log_every": 7}}}, "rescale/b/seed0 and .*/a/seed0 are the same run"),
        (
            {"trials": {"base": {"train.optimizer.rl": 1}}},
            r"trials/rescale/base: .*unknown key 'train.optimizer.rl' \(did you mean lr",
        ),
        ({"screening": {}}, "would choose a setting on the test set; set data.split: holdout"),
        ({"trials": {"../up": {}}}, "'../up': must be letters"),
        ({"trials": {"gain": {"label_smoothing": 0.3}}}, "schemes.rescale: two trials are named 'gain'"),
        ({"trials": {"a": {}, "A": {"label_smoothing": 0.3}}}, "schemes.rescale: two trials are named 'a'"),
        ({"finals": {"seeds": [0, 1, 0]}}, r"finals.seeds=\[0, 1, 0\]: 0 occurs twice; remove one"),
        ({"screening": {"seeds": [3, 3]}}, r"screening.seeds=\[3, 3\]: 3 occurs twice; remove one"),
        ({"finals": {"schemes": ["bn", "bn"]}}, r"finals.schemes=.*: bn occurs twice; remove one"),
        ({"finals": {"schemes": ["rescale", "ln"]}}, "finals.schemes: 'ln' is not one of rescale, bn"),
        ({"finals": {"schemes": ["rescale"], "baseline": "bn"}}, "'bn' is not one of finals.schemes"),
        ({"grid": {"train.optimizer.lr": []}}, "train.optimizer.lr has no values"),
        ({"overrides": {"train.seed": 3}}, "train.seed cannot be an override; it follows from seeds"),
        ({"trials": {"base": {}, "a": {"output": "x"}}}, "output cannot be an override"),
        (
            {
                "trials": {"a": {}, "b": {"label_smoothing": 0.1}},
                "schemes": {"rescale": {}, "bn": {"overrides": {"train.epochs": 9}}},
            },
            "train.epochs: must be the same for all",
        ),
        ({"trails": {}}, r"unknown key 'trails' \(did you mean trials"),
    ],
)
def test_refusals_name_the_key(make_study, changes, message):
    with pytest.raises(ConfigError, match=message):
        screening_runs(make_study(**changes))


def test_a_scheme_outside_of_the_comparison_may_have_fewer_trials(make_study):
    study = make_study(schemes={"rescale": {}, "bn": BN}, finals={"schemes": ["bn"], "overrides": OFFICIAL})
    assert len(screening_runs(study)) == 4


def test_folders_with_other_settings_are_refused(make_study):
    runs = screening_runs(make_study())
    write_text(cfg.dump(runs[0].config), runs[0].folder / "config.yaml")
    check_folders(runs)
    with pytest.raises(TrainingError, match="started with another config: train.batch_size was 4, is 8"):
        check_folders(screening_runs(make_study("train.batch_size=8")))


def test_the_example_of_the_docs_is_the_file_that_ships():
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/studies.md").read_text(), re.DOTALL)[1]
    assert (cfg.configs_dir() / "studies/flowers64.yaml").read_text().split("\n", 1)[1] == block


def test_the_studies_that_ship_are_valid():
    names = sorted((cfg.configs_dir() / "studies").glob("*.yaml"))
    assert names
    for path in names:
        study = read_study(f"studies/{path.stem}")
        assert len(screening_runs(study)) >= 2 * len(study.compared)
        first = {scheme: trials_of(study, scheme)[0] for scheme in study.compared}
        assert len(final_runs(study, first)) == len(study.compared) * len(study.finals.seeds)


def test_what_the_weights_of_a_run_chose_is_no_difference(make_study):
    """A run stores the mean and std that its task chose, which the study leaves open."""
    run = screening_runs(make_study())[0]
    assert run.config.data.mean is None
    write_text(cfg.dump(make_task(run.config).config), run.folder / "config.yaml")
    check_folders([run])


def test_a_share_of_the_training_set_is_held_out(make_study):
    """It chooses settings as a list of held-out images does, and is no test set."""
    runs = screening_runs(make_study(screening={"overrides": {"data.split": "share"}}))
    assert {run.config.data.split for run in runs} == {"share"}


@pytest.mark.parametrize(
    "finals", [{}, {"overrides": {"data.split": "holdout"}}, {"overrides": {"data.split": "share"}}]
)
def test_final_runs_that_would_evaluate_held_out_samples_are_refused(make_study, finals):
    study = make_study("data.split=holdout", finals={"seeds": [0], **finals})
    with pytest.raises(ConfigError, match="finals/rescale/base/seed0 would evaluate training samples"):
        final_runs(study, {scheme: trials_of(study, scheme)[0] for scheme in ("rescale", "bn")})


def test_a_study_of_translation_holds_samples_out_when_the_corpus_is_prepared(tmp_path):
    """The message of a study without the keys names them, and the study with them has both stages."""
    content = {
        "recipe": "translation/multi30k/en_de",
        "output": str(tmp_path / "study"),
        "trials": {"a": {}, "b": {"train.optimizer.lr": 0.001}},
        "schemes": {"rescale": {}},
    }
    plain = cfg.check(content, StudyConfig, "study")
    with pytest.raises(ConfigError, match="on the test set; set data.corpus.holdout: 10, and a data.folder that was"):
        screening_runs(plain)
    stages = {
        "screening": {"overrides": {"data.corpus.holdout": 10, "data.folder": "a"}},
        "finals": {"overrides": {"data.corpus.holdout": 0, "data.folder": "b"}},
    }
    study = cfg.check({**content, **stages}, StudyConfig, "study")
    assert len(screening_runs(study)) == 2
    assert len(final_runs(study, {"rescale": trials_of(study, "rescale")[0]})) == 3


def test_later_overrides_win(make_study):
    """Study, stage, scheme, trial, command line: each sets one key that the one before it has set too."""
    keys = ["train.workers", "train.log_every", "train.accumulate", "train.eval_every", "train.checkpoint_minutes"]
    levels = [dict.fromkeys(keys[number:], number + 1) for number in range(5)]
    study = make_study(
        *(f"{key}={value}" for key, value in levels[4].items()),
        overrides=levels[0],
        screening={"overrides": {**HOLDOUT, **levels[1]}},
        schemes={
            "bn": {"overrides": levels[2], "trials": {"a": levels[3], "b": {**levels[3], "label_smoothing": 0.1}}}
        },
        trials=None,
    )
    train = screening_runs(study)[0].config.train
    assert [getattr(train, key.removeprefix("train.")) for key in keys] == [1, 2, 3, 4, 5]


def test_folders_with_odd_names_are_values(make_study, tmp_path):
    study = make_study(output=str(tmp_path / "@a #b: c"))
    assert screening_runs(study)[0].folder.is_relative_to(tmp_path / "@a #b: c")
