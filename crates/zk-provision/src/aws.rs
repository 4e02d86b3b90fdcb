//! The target AWS.

mod account;
mod failure;

pub use account::AwsOptions;
