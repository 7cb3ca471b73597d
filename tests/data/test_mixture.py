import pytest

from megatron_prism.data.mixture import Mixture, check_sources, packaged_mixtures
from megatron_prism.data.shoebox.corpus import DEFAULT_CHARACTERS
from megatron_prism.errors import ConfigError, DataError

# Domain shares of the paper's Figure 2 in percent: general, math, code, science.
DOMAINS = {"math": (25, 75, 0, 0), "mc": (10, 47.5, 42.5, 0), "mcs": (10, 37, 40.5, 12.5)}
DOMAIN_OF = {
    **dict.fromkeys(("dclm-edu", "chat", "web", "retrieval"), 0),
    **dict.fromkeys(("nemotron-math", "mot-math", "megamath-web-pro", "math"), 1),
    **dict.fromkeys(
        ("mot-code", "opencodereasoning-2", "refinecode", "starcoder2", "code", "code_reasoning"), 2
    ),
    **dict.fromkeys(("openthoughts3-science", "mot-science", "science"), 3),
}


@pytest.mark.parametrize("prefix", ["", "shoebox-"])
@pytest.mark.parametrize("name", DOMAINS)
def test_packaged_mixtures_have_the_papers_shares(prefix, name):
    mixture = Mixture.load(prefix + name)
    shares = [0.0] * 4
    for source, weight in mixture.weights.items():
        shares[DOMAIN_OF[source]] += 100 * weight
    assert shares == pytest.approx(DOMAINS[name])
    assert mixture.total == pytest.approx(100)
    assert "2603.17074" in mixture.source


def test_every_packaged_mixture_loads():
    assert len(packaged_mixtures()) == 9
    for name in packaged_mixtures():
        mixture = Mixture.load(name)
        assert mixture.name == name
        assert mixture.description
        if name.startswith("shoebox"):
            check_sources(mixture.weights, DEFAULT_CHARACTERS, name)


def test_weights_are_normalised_and_their_sum_kept(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nweights: {a: 1, b: 3}\n")
    mixture = Mixture.load(path)
    assert mixture.weights == {"a": 0.25, "b": 0.75}
    assert mixture.total == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nweights: {a: 0}", "weights.a=0.0: must be a number greater"),
        ("name: x\nweights: {a: -1}", "weights.a=-1.0"),
        ("name: x\nweights: {a: .inf}", "weights.a=inf"),
        ("name: x\nweights: {a: .nan}", "weights.a=nan"),
        ("name: x\nweights: {}", "weights is empty"),
        ("name: x\nweights: {a: much}", "much"),
        ("name: x\nweigths: {a: 1}", "did you mean 'weights'"),
        ("weights: [1]", "mine.yaml"),
        ("weights: {a: 1}", "name"),
        ("- a", "expected KEY: VALUE lines"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Mixture.load(path)
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_unknown_names():
    with pytest.raises(ConfigError, match="did you mean 'shoebox-mcs'"):
        Mixture.load("shoebox-mcss")
    with pytest.raises(ConfigError, match="no such file"):
        Mixture.load("nowhere.yaml")
    with pytest.raises(DataError, match="here: no source 'maths'; did you mean 'math'"):
        check_sources({"maths": 1.0}, ["math", "web"], "here")
