//! What went wrong at AWS, and what to do about it.

use std::error::Error as StdError;
use std::fmt;

use aws_sdk_iot::error::{BuildError, ProvideErrorMetadata, SdkError};

use crate::Error;

/// Says of a call that failed what it was to do, and to what. `operation` is the
/// name of the permission it takes, `service:Action`.
pub(crate) fn failed<E, R>(
    operation: &'static str,
    resource: &str,
) -> impl FnOnce(SdkError<E, R>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    R: fmt::Debug + Send + Sync + 'static,
{
    let resource = resource.to_owned();
    move |error| {
        let is_answer = matches!(error, SdkError::ServiceError(_));
        let code = error.code().map(str::to_owned);
        let said = match (is_answer, &code, error.message()) {
            (true, Some(code), Some(message)) => format!("{code}: {message}"),
            (true, Some(code), None) => code.clone(),
            _ => all_of(&error),
        };
        let kind = match &code {
            Some(code) => Kind::of(code, error.message().unwrap_or_default()),
            None if no_credentials(&error) => Kind::NoCredentials,
            None if is_unreachable(&error) => Kind::Unreachable,
            None => Kind::Other,
        };
        kind.into_error(operation, resource, code, said)
    }
}

/// Says of a call that it could not even be put into words.
pub(crate) fn incomplete(operation: &'static str, resource: &str, error: BuildError) -> Error {
    Error::Aws {
        operation,
        resource: resource.to_owned(),
        code: None,
        source: error.into(),
    }
}

/// What an answer has to tell, and may leave out.
pub(crate) fn told<T>(
    value: Option<T>,
    operation: &'static str,
    resource: &str,
    what: &str,
) -> Result<T, Error> {
    value.ok_or_else(|| Error::Aws {
        operation,
        resource: resource.to_owned(),
        code: None,
        source: format!("the answer has no {what}, so it is not from AWS").into(),
    })
}

impl Error {
    /// Whether that is what AWS calls what happened.
    pub(crate) fn is_aws(&self, wanted: &str) -> bool {
        matches!(self, Self::Aws { code: Some(code), .. } if code == wanted)
    }

    /// The same, for a code that has many causes: whether AWS also says that.
    pub(crate) fn is_aws_saying(&self, wanted: &str, text: &str) -> bool {
        match self {
            Self::Aws { source, .. } => self.is_aws(wanted) && source.to_string().contains(text),
            _ => false,
        }
    }
}

/// What is to be done about it, as far as it has a common cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ClockOff,
    Denied,
    Expired,
    NoCredentials,
    Other,
    Refused,
    Throttled,
    Unreachable,
}

impl Kind {
    fn of(code: &str, message: &str) -> Self {
        // an error code of a protocol of XML may come with its namespace
        let code = code.rsplit('#').next().unwrap_or(code);
        match code {
            "RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture" => Self::ClockOff,
            "SignatureDoesNotMatch" | "InvalidSignatureException" => {
                let signs = ["Signature expired", "Signature not yet current"];
                if signs.iter().any(|sign| message.contains(sign)) {
                    Self::ClockOff
                } else {
                    Self::Refused
                }
            }
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => Self::Expired,
            "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "InvalidAccessKeyId"
            | "AuthFailure"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException" => Self::Refused,
            "AccessDenied"
            | "AccessDeniedException"
            | "AuthorizationError"
            | "NotAuthorized"
            | "UnauthorizedOperation" => Self::Denied,
            "Throttling"
            | "ThrottlingException"
            | "ThrottledException"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "RequestLimitExceeded"
            | "TooManyRequestsException"
            | "PriorRequestNotComplete"
            | "SlowDown" => Self::Throttled,
            _ => Self::Other,
        }
    }

    fn into_error(
        self,
        operation: &'static str,
        resource: String,
        code: Option<String>,
        said: String,
    ) -> Error {
        match self {
            Self::ClockOff => Error::ClockOff { said },
            Self::Denied => {
                // what a call takes besides its own permission, as iam:PassRole
                let (action, resource) = match denied(&said) {
                    Some((action, Some(resource))) => (action, resource),
                    Some((action, None)) => (action, resource),
                    None => (operation.to_owned(), resource),
                };
                Error::Denied {
                    action,
                    resource,
                    said,
                }
            }
            Self::Expired => Error::CredentialsExpired { said },
            Self::NoCredentials => Error::NoCredentials { said },
            Self::Refused => Error::CredentialsRefused { said },
            Self::Throttled => Error::Throttled {
                operation,
                resource,
                said,
            },
            Self::Unreachable => Error::Unreachable { operation, said },
            Self::Other => Error::Aws {
                operation,
                resource,
                code,
                source: said.into(),
            },
        }
    }
}

/// Action and resource out of AWS's sentence: `User: … is not authorized to
/// perform: ACTION on resource: RESOURCE because …`. It is only shown.
fn denied(said: &str) -> Option<(String, Option<String>)> {
    let word = |text: &str| {
        let word = text.split_whitespace().next()?;
        Some(word.trim_matches(['"', '\'', ',', '.']).to_owned())
    };
    let (_, rest) = said.split_once("not authorized to perform: ")?;
    let action = word(rest)?;
    let resource = rest
        .split_once("on resource: ")
        .and_then(|(_, rest)| word(rest));
    Some((action, resource))
}

/// Whether there was no answer at all.
fn is_unreachable<E, R>(error: &SdkError<E, R>) -> bool {
    matches!(
        error,
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_)
    )
}

/// Whether the request was never sent, because there was nothing to sign it with.
fn no_credentials<E: StdError + 'static, R: fmt::Debug + 'static>(error: &SdkError<E, R>) -> bool {
    // the type of that is in a crate of the SDK's inside
    all_of(error).to_ascii_lowercase().contains("credential")
}

/// What the SDK says, and each cause of it.
fn all_of(error: &(dyn StdError + 'static)) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        source = error.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: &str, message: &str) -> Error {
        let said = format!("{code}: {message}");
        let kind = Kind::of(code, message);
        kind.into_error(
            "lambda:CreateFunction",
            "Lambda function zk-verifier".into(),
            Some(code.into()),
            said,
        )
    }

    #[test]
    fn what_is_not_permitted_is_named() {
        let own = error("AccessDeniedException", "no");
        let Error::Denied {
            action, resource, ..
        } = &own
        else {
            panic!("{own:?}");
        };
        assert_eq!(action, "lambda:CreateFunction");
        assert_eq!(resource, "Lambda function zk-verifier");
        assert!(own.to_string().contains("`zk-setup policy`"), "{own}");

        // as real AWS says it
        let more = error(
            "AccessDeniedException",
            "User: arn:aws:iam::123456789012:user/op is not authorized to perform: iam:PassRole \
             on resource: arn:aws:iam::123456789012:role/zk-verifier because no identity-based \
             policy allows the iam:PassRole action",
        );
        let Error::Denied {
            action, resource, ..
        } = &more
        else {
            panic!("{more:?}");
        };
        assert_eq!(action, "iam:PassRole");
        assert_eq!(resource, "arn:aws:iam::123456789012:role/zk-verifier");
    }

    #[test]
    fn a_clock_that_is_off_is_not_a_wrong_secret() {
        let late = "Signature expired: 20261126T003634Z is now earlier than 20261126T010000Z";
        let early = "Signature not yet current: 20261126T003634Z is still later than \
                     20261125T010000Z";
        for (code, message) in [
            ("RequestTimeTooSkewed", "The difference is too large."),
            ("SignatureDoesNotMatch", late),
            ("InvalidSignatureException", late),
            ("InvalidSignatureException", early),
            ("RequestExpired", ""),
        ] {
            let off = error(code, message);
            assert!(matches!(off, Error::ClockOff { .. }), "{off:?}");
        }
        let wrong = "The request signature we calculated does not match the signature you \
                     provided. Check your AWS Secret Access Key and signing method.";
        for code in ["SignatureDoesNotMatch", "InvalidSignatureException"] {
            let refused = error(code, wrong);
            assert!(
                matches!(refused, Error::CredentialsRefused { .. }),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn codes_have_their_causes() {
        for (code, wanted) in [
            ("ExpiredToken", Kind::Expired),
            ("ExpiredTokenException", Kind::Expired),
            ("InvalidClientTokenId", Kind::Refused),
            ("UnrecognizedClientException", Kind::Refused),
            ("AccessDenied", Kind::Denied),
            ("Throttling", Kind::Throttled),
            ("ThrottlingException", Kind::Throttled),
            ("TooManyRequestsException", Kind::Throttled),
            ("com.amazonaws.sqs#RequestThrottled", Kind::Throttled),
            // which can mean that a rule is missing
            ("UnauthorizedException", Kind::Other),
            ("ResourceNotFoundException", Kind::Other),
        ] {
            assert_eq!(Kind::of(code, ""), wanted, "{code}");
        }
        let other = error("LimitExceededException", "Too many.");
        assert!(other.is_aws("LimitExceededException"));
        assert!(other.is_aws_saying("LimitExceededException", "many"));
        assert!(!other.is_aws_saying("LimitExceededException", "few"));
        let said = other.to_string();
        assert!(
            said.contains("lambda:CreateFunction of Lambda function zk-verifier"),
            "{said}"
        );
        assert!(said.contains("LimitExceededException: Too many."), "{said}");
    }
}
