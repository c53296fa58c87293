// Where an invocation is. Grids are one-dimensional: the host folds them into x, y, z under the device's limit.

struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @if(subgroups) @builtin(subgroup_id) subgroup: u32,
    @if(subgroups) @builtin(subgroup_invocation_id) in_subgroup: u32,
    @if(subgroups) @builtin(num_subgroups) subgroups: u32,
}

// Invocations of a workgroup, in all kernels but those that say otherwise.
const LANES = 64u;

// The workgroup's index in the one-dimensional grid; folding may add some past its end.
fn group_index(lane: Lane) -> u32 {
    return lane.group.x + lane.groups.x * (lane.group.y + lane.groups.y * lane.group.z);
}
