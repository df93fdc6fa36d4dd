"""Many devices and many hosts: how a process gets its devices, mesh and sharding rules, what processes tell each other and agree on,
and, without the devices, topologies to compile for and what a program sends between them."""
