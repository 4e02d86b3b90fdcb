use lambda_runtime::Diagnostic;
use zk_store::StoreError;

/// Why an invocation fails: Lambda tries again, and at last puts the event into
/// the dead-letter queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A variable of the environment is missing, or is not text.
    #[error("the environment has no usable {name}: set it in the function's configuration")]
    Environment {
        /// The variable.
        name: &'static str,
    },
    /// What came is not what the rule gives. No further attempt makes it right, but
    /// in the dead-letter queue it is not lost.
    #[error(
        "this is not an event of the rule: {detail}; the rule's SQL has to be the one of docs/lambda.md, \
         then the dead-letter queue can be sent again"
    )]
    Event {
        /// What is wrong with it, without a part of it.
        detail: String,
    },
    /// The store has not answered in the time that the invocation has.
    #[error("the store did not answer before the invocation's end")]
    Late,
    /// The store has failed: not all of the message is known to be durable.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl Error {
    /// What Lambda calls the error (`errorType`), which does not change between
    /// versions.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Environment { .. } => "Environment",
            Self::Event { .. } => "MalformedEvent",
            Self::Late => "StoreTimeout",
            Self::Store(StoreError::EvidenceFull { .. }) => "EvidenceFull",
            Self::Store(_) => "StoreFailed",
        }
    }

    /// The error and its causes in one line.
    ///
    /// `Debug` of the SDK's errors has whole answers of the service in it, with
    /// items; this has not.
    pub(crate) fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}

impl From<Error> for Diagnostic {
    fn from(error: Error) -> Self {
        Self {
            error_type: error.kind().to_owned(),
            error_message: error.chain(),
        }
    }
}
