// grid - the number of a workgroup when more than 65,535 are folded into two dimensions.

// Number of this workgroup. The last row may hold groups past the end: the kernel must ignore those. A kernel whose dispatch
// may be much work adds `first_group` of its parameters, by which the host runs it in several pieces.
fn flat_group(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.y * count.x + id.x;
}
