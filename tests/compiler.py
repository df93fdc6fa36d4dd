"""How XLA compiles in the tests, and in the processes that they compare with themselves."""

# Most of the suite's time is compilation of programs that run once on a few numbers: LLVM need not
# optimise them, the older emitters of fusions take half as long, and code made in one part a sixth
# less where all cores are busy.
QUICK = (
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
    '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
)
