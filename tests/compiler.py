"""How XLA compiles in the tests, and in the processes that they compare with themselves."""

# Most of the suite's time is compilation of programs that run once on a few numbers: LLVM need not
# optimise them, and the older emitters of fusions take half as long.
QUICK = (
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
    '--xla_cpu_use_fusion_emitters=false'
)
