//! Adapters: unmodified PEFT directories → [`Factors`].

mod factors;

pub use factors::{Factors, Pair, Place, Target};
