"""Names of absent machines, and what a program's HLO says it sends."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from densegrpo_jax.planning.collectives import collective_bytes
from densegrpo_jax.planning.topology import parse
from densegrpo_jax.runtime.mesh import make_mesh


@pytest.mark.parametrize(
    ('name', 'count', 'compiler'),
    [
        ('v5e:2x4', 8, 'libtpu'),
        ('v5p:2x2x1', 4, 'libtpu'),
        ('v6e:1x1', 1, 'libtpu'),
        ('tpu7x:2x2x1', 8, 'libtpu'),
        ('h100:8', 8, 'jax_plugins.xla_cuda13'),
    ],
)
def test_topologies(name, count, compiler):
    topology = parse(name)
    assert (topology.count, topology.compiler) == (count, compiler) and topology.chip.gib > 10


@pytest.mark.parametrize('compiler', ['no_such_package', 'no_such_package.inner', 'jax.no_such'])
def test_a_compiler_that_is_not_there_is_no_error(compiler):
    assert not parse('h100:8')._replace(compiler=compiler).can_compile
    assert parse('h100:8')._replace(compiler='jax.numpy').can_compile


def test_only_tpus_are_compiled_with_less_effort():
    assert not parse('v5e:2x4').compiler_options() and parse('v5e:2x4').compiler_options(quick=True)
    assert parse('h100:8').compiler_options(quick=True) == parse('h100:8').compiler_options()


@pytest.mark.parametrize('name', ['v99:2x2', 'v5e', 'v5e:8', 'h100:2x4', 'v5p:2x', '', 'v5e:2x4x'])
def test_unknown_topologies_are_named(name):
    with pytest.raises(ValueError, match='--topology='):
        parse(name)


@pytest.fixture(scope='module')
def mesh():
    return make_mesh({'data': 1, 'fsdp': 8, 'tensor': 1})


def compiled(function, mesh, *specs_and_shapes):
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for spec, shape in specs_and_shapes
    ]
    return (
        jax.jit(function, out_shardings=NamedSharding(mesh, P()))
        .lower(*arguments)
        .compile()
        .as_text()
    )


def test_bytes_of_one_all_gather(mesh):
    hlo = compiled(lambda x: x, mesh, (P('fsdp'), (16, 32)))
    assert collective_bytes(hlo) == {'all-gather': 16 * 32 * 4}


def test_bytes_of_one_all_reduce(mesh):
    hlo = compiled(lambda x, w: x @ w, mesh, (P(None, 'fsdp'), (4, 64)), (P('fsdp'), (64, 8)))
    assert collective_bytes(hlo) == {'all-reduce': 4 * 8 * 4}


def test_a_loop_counts_as_often_as_it_runs(mesh):
    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    hlo = compiled(scanned, mesh, (P(), (4, 64)), (P(None, None, 'fsdp'), (5, 64, 64)))
    total = sum(collective_bytes(hlo).values())
    # the compiler gathers one or the other in each round, and perhaps the last result
    activation, matrix = 4 * 64 * 4, 64 * 64 * 4
    assert total in (5 * activation, 6 * activation, 5 * matrix, 5 * matrix + activation)


def test_text_without_collectives_and_without_a_program():
    assert not collective_bytes(jax.jit(lambda x: x + 1).lower(jnp.ones(3)).compile().as_text())
    assert not collective_bytes('')


def test_asynchronous_and_shrinking_collectives_by_hand():
    hlo = """
%body (p: f32[8]) -> f32[8] {
  %ag = (bf16[2,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(bf16[2,4]{1,0} %p), dimensions={0}
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(7)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %rs = f32[2,4]{1,0} reduce-scatter(f32[16,4]{1,0} %p), dimensions={0}
  %w = (s32[], f32[8]{0}) while((s32[], f32[8]{0}) %t), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"19"}}
  %v = (s32[], f32[8]{0}) while((s32[], f32[8]{0}) %t), condition=%cond, body=%body
}
"""
    assert collective_bytes(hlo) == {
        'reduce-scatter': 16 * 4 * 4,
        'all-gather': (19 + 7) * 16 * 4 * 2,
    }


def test_collectives_of_the_tpu_compiler_by_hand():
    """A product that passes pieces of a matrix around in a loop with a step of 2, and a gather
    spread over two fusions.
    """
    hlo = """
%part.1 (p: bf16[2,4]) -> bf16[16,4] {
  ROOT %ag.1 = bf16[16,4]{1,0} all-gather(%p), channel_id=5, dimensions={0}
}

%part.2 (p: bf16[2,4]) -> bf16[16,4] {
  ROOT %ag.2 = bf16[16,4]{1,0} all-gather(%p), channel_id=5, dimensions={0}
}

%window (q: (bf16[8,4], u32[])) -> (bf16[8,4], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %piece = bf16[8,4]{1,0} get-tuple-element(%q), index=0
  %i = u32[]{:T(128)} get-tuple-element(%q), index=1
  %next = u32[]{:T(128)} add(%i, %two)
  %cp = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}) collective-permute-start(%piece), \
channel_id=6
  ROOT %tuple.1 = (bf16[8,4]{1,0}, u32[]{:T(128)}) tuple(%piece, %next)
}

%more (q: (bf16[8,4], u32[])) -> pred[] {
  %limit = u32[]{:T(128)} constant(4)
  %count = u32[]{:T(128)} get-tuple-element(%q), index=1
  ROOT %less = pred[] compare(%count, %limit), direction=LT
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one = s32[]{:T(128)} constant(1)
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  %add = s32[]{:T(128)} add(%n, %one)
  %f1 = bf16[16,4]{1,0} fusion(%x), kind=kOutput, calls=%part.1
  %f2 = bf16[16,4]{1,0} fusion(%x), kind=kOutput, calls=%part.2
  %inner = (bf16[8,4]{1,0}, u32[]) while(%t), condition=%more, body=%window
  ROOT %tuple.2 = (s32[]{:T(128)}, f32[8]{0}) tuple(%add, %y)
}

%cond (p: (s32[], f32[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(19)
  %m = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%m, %c), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body
}
"""
    assert collective_bytes(hlo) == {
        'all-gather': 19 * 16 * 4 * 2,
        'collective-permute': 19 * 2 * 8 * 4 * 2,
    }
