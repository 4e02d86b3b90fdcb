//! What went wrong at AWS, and what to do about it.

use std::error::Error as StdError;

use aws_sdk_iot::error::{ProvideErrorMetadata, SdkError};

use crate::Error;

/// Says of a call that failed what it was to do, and to what. `operation` is the
/// name of the permission it takes, `service:Action`.
pub(crate) fn failed<E, R>(
    operation: &'static str,
    resource: &str,
) -> impl FnOnce(SdkError<E, R>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let resource = resource.to_owned();
    move |error| Error::Aws {
        operation,
        resource,
        code: error.code().map(str::to_owned),
        source: error.into(),
    }
}
