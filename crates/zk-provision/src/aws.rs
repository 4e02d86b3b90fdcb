//! The target AWS.

mod account;
mod cloud;
mod failure;
mod ours;
mod zip;

pub use account::AwsOptions;
pub(crate) use ours::VERSION;
pub use zip::{Architecture, FunctionZip};
