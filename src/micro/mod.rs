//! Sums of products in tiles that stay in registers: the inner loops of the CPU twins of convolution,
//! matrix products and attention.
//!
//! Every element is a sum of chains of multiply-adds (fused on machines that can, which is all since about
//! 2013), cut at lengths that the shapes alone decide: it has the same bits wherever its tile lies and however
//! wide the machine's vectors are.

pub mod dense;
pub mod gather;
pub mod outer;
pub mod panels;
