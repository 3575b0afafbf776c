"""Past one machine: training in the processes of accelerate, scoring in the workers of Ray. docs/cluster.md."""
