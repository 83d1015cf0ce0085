// matrices_8 - cooperative matrices of 8 x 8 numbers, in subgroups of 8 lanes.
//!include product/through_matrices.wgsl

const SIDE: u32 = 8u;
const LANES: u32 = 8u;
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sum = coop_mat8x8<f32, C>;
