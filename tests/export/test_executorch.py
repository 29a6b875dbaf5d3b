"""Programs of ExecuTorch, run by its own runtime without this package."""

from collections import Counter

import pytest
import torch

pytest.importorskip("executorch")
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.runtime import Runtime

import zoo
from tests.helpers.nets import narrow, samples, wake_
from tests.helpers.transformers import VOCABULARY, batch, make
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment, Settings
from zoo.export.images import export_net, graph_of
from zoo.export.text import graphs_of
from zoo.export.writing import check_graph, export


def net(kind, **options):
    """A narrow net whose layers all have an effect."""
    torch.manual_seed(0)
    model = narrow(kind, **options).eval()
    wake_(model)
    return model


def sizes(kind, side=32):
    return [samples(kind, *shape) for shape in ((1, side), (3, side), (2, side + 9, side + 1))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A graph with its file."""
    graph = graph_of(net("cifar"), sizes("cifar"), "noise")
    folder = tmp_path_factory.mktemp("executorch") / "net"
    exported = export(Deployment("images", (graph,), {}), TARGETS["executorch"], folder)
    return graph, folder, exported


def calls(path):
    """The operators that portable kernels run, and the subgraphs of XNNPACK, with their numbers."""
    plan = deserialize_pte_binary(path.read_bytes()).program.execution_plan[0]
    found = Counter()
    for instruction in (instruction.instr_args for chain in plan.chains for instruction in chain.instructions):
        if hasattr(instruction, "delegate_index"):
            found[plan.delegates[instruction.delegate_index].id] += 1
        elif hasattr(instruction, "op_index"):
            found[plan.operators[instruction.op_index].name] += 1
    return found


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (8, 3, 82, 66), (5, 3, 9, 40), (1, 3, 1, 1)])
def test_axes_may_have_any_length_up_to_the_limits(made, shape):
    graph, folder, _ = made
    x = torch.randn(shape)
    program = Runtime.get().load_program(folder / "model.pte")
    (found,) = program.load_method("forward").execute([x])
    torch.testing.assert_close(found, torch.from_numpy(graph.run((x,))[0]), rtol=1e-4, atol=1e-5)


def test_the_limits_are_in_the_file_and_in_the_remark(made):
    _, folder, exported = made
    program = Runtime.get().load_program(folder / "model.pte")
    assert program.metadata("forward").input_tensor_meta(0).sizes() == (8, 3, 82, 66)
    assert exported.remark.startswith("at most batch 8, height 82, width 66; inputs must be contiguous")
    with pytest.raises(RuntimeError, match="set_inputs"):
        program.load_method("forward").execute([torch.randn(9, 3, 82, 66)])


def test_xnnpack_runs_all_but_the_copies_of_edges(made):
    """Average pools round the size up at odd sizes, which XNNPACK does not: the last row and column are copied."""
    _, folder, _ = made
    found = calls(folder / "model.pte")
    assert found.pop("XnnpackBackend") == 6
    reshaping = ("aten::view_copy", "aten::sym_size", "executorch_prim::")
    rest = {name: count for name, count in found.items() if not name.startswith(reshaping)}
    assert rest == {"aten::slice_copy": 4}  # a row and a column for each of two shortcuts


def test_vgg_has_one_pool_that_xnnpack_does_not(tmp_path):
    export_net(net("vgg"), sizes("vgg", 64), tmp_path / "net", "executorch")
    found = calls(tmp_path / "net/model.pte")
    assert found.pop("XnnpackBackend") == 2
    assert {name for name in found if "pool" in name} == {"aten::_adaptive_avg_pool2d"}


def test_feature_maps(tmp_path):
    model = zoo.create_model("rescalenet20_cifar", width=0.5, features_only=True).eval()
    export_net(model, sizes("cifar"), tmp_path / "net", "executorch")
    x = samples("cifar", 2, 40)
    program = Runtime.get().load_program(tmp_path / "net/model.pte")
    for found, expected in zip(program.load_method("forward").execute([x]), model(x), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_another_file_is_noticed(made):
    graph, folder, _ = made
    torch.manual_seed(1)
    other = narrow("cifar").eval()
    wake_(other)
    changed = graph_of(other, [sample[0] for sample in graph.samples], "noise")
    with pytest.raises(ExportError, match=r"model: outputs differ by .* at images \(1, 3, 32, 32\)"):
        check_graph(changed, TARGETS["executorch"], folder, Settings())


def test_a_damaged_file_is_named(made, tmp_path):
    graph, folder, _ = made
    (tmp_path / "model.pte").write_bytes((folder / "model.pte").read_bytes()[:5000])
    with pytest.raises(ExportError, match=r"^model.pte: ExecuTorch does not load it: "):
        check_graph(graph, TARGETS["executorch"], tmp_path, Settings())


def test_half_precision_is_refused_because_xnnpack_stores_single_precision_anyway(tmp_path):
    with pytest.raises(ExportError, match="--half is not for this target"):
        export_net(net("cifar"), sizes("cifar"), tmp_path / "net", "executorch", settings=Settings(half=True))


def test_texts_may_have_any_length_up_to_the_limits(tmp_path):
    graphs = graphs_of(make().float(), [batch(1)[0], batch(3)[0], batch(2)[0][:, :-1]], "sentences")
    export(Deployment("text", graphs, {}), TARGETS["executorch"], tmp_path / "net")
    programs = [Runtime.get().load_program(tmp_path / f"net/{graph.name}.pte") for graph in graphs]
    encoder, decoder = (program.load_method("forward") for program in programs)
    source, token = torch.randint(4, VOCABULARY, (4, 6)), torch.randint(4, VOCABULARY, (4, 1))
    past = [torch.randn(4, 2, 2, 4, 8) for _ in range(3)]
    expected = graphs[1].module(source, token, *graphs[0].module(source), *past)
    found = decoder.execute([source, token, *encoder.execute([source]), *past])
    assert max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)) < 1e-5
