//! Models: functions that record themselves on a tape.

pub mod unet;
