// grid - numbers of threads and workgroups, where more than 65,535 workgroups are folded into two dimensions.

// The arguments of an entry point that does not sum over its workgroup (there, Thread of lib/reduce.wgsl).
struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
}

// The same without the lane, for entry points that loop between barriers: a browser must see that all threads
// of a workgroup loop as often, and takes no member of a struct for the same in all if the lane is another.
struct Workgroup {
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
}

// Number of this workgroup. The last row may hold groups past the end: the kernel must ignore those. A kernel
// whose dispatch may be much work adds `first_group` of its parameters, by which the host runs it as several
// dispatches.
fn flat_group(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.y * count.x + id.x;
}

// Number of this thread, in workgroups of `size` threads; it may be past the end.
fn element(thread: Invocation, size: u32) -> u32 {
    return flat_group(thread.group, thread.groups) * size + thread.lane;
}
