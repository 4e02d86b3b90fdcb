//! `zk-verifier-lambda`, as `bootstrap` in Lambda: environment, logging, runtime.
#![forbid(unsafe_code)]

use std::env;
use std::io;
use std::process::ExitCode;

use lambda_runtime::{Diagnostic, LambdaEvent, Runtime, service_fn};
use serde_json::value::RawValue;
use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use zk_store::Store;
use zk_verifier_lambda::{Answer, Config, handle};

fn main() -> ExitCode {
    log_to_stdout();
    if let Some(missing) = RUNTIME.iter().find(|name| env::var_os(name).is_none()) {
        error!(
            "{missing} is not set: AWS Lambda starts this program, nobody else; docs/lambda.md says \
             how to set the function up, and how to run it without AWS"
        );
        return ExitCode::from(2);
    }
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(lambda_runtime::Error::from)
        .and_then(|runtime| runtime.block_on(serve()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// The story: open the store once, then take in one event after the other.
async fn serve() -> Result<(), lambda_runtime::Error> {
    let store = Config::from_env()?.open().await?;
    let function = service_fn(|event| answer(&store, event));
    Runtime::new(function).run().await
}

async fn answer(store: &Store, event: LambdaEvent<Box<RawValue>>) -> Result<Answer, Diagnostic> {
    let (event, context) = event.into_parts();
    let answer = handle(store, event.get(), &context.request_id, context.deadline()).await;
    answer.map_err(Diagnostic::from)
}

/// Lines of JSON with the names that Lambda's own have.
fn log_to_stdout() {
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_target(false)
        .with_writer(io::stdout);
    // That one repeats each error that the function has logged already.
    let filter = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("lambda_runtime::layers::panic", LevelFilter::OFF);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
}

/// What Lambda sets, and its runtime's library can't do without.
const RUNTIME: [&str; 4] = [
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_VERSION",
];
