//! The target AWS.

mod account;
mod cloud;
mod failure;
mod identity;
mod ours;
mod permissions;
mod setup;
mod zip;

pub(crate) use account::Account;
pub use account::AwsOptions;
pub(crate) use ours::VERSION;
pub use permissions::operator_policy;
pub use setup::{AwsDesired, AwsPlace, AwsSetup};
pub use zip::{Architecture, FunctionZip};
