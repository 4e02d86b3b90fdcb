//! The target AWS.

mod account;
mod cloud;
mod failure;
mod ours;
mod permissions;
mod zip;

pub use account::AwsOptions;
pub(crate) use ours::VERSION;
pub use permissions::operator_policy;
pub use zip::{Architecture, FunctionZip};
