//! A message on its way in: look up, check, put.

use std::sync::Arc;

use tokio::task::JoinSet;
use zk_verify::{Context, Verdict, check};

use crate::readings::Put;
use crate::{Held, Store, StoreError};

/// What became of the envelopes of a message. All of it is durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Accepted and stored.
    pub stored: u64,
    /// Accepted, and stored before.
    pub duplicates: u64,
    /// Of those stored, more than an hour ahead of their receipt.
    pub ahead: u64,
    /// Not accepted, in the order of the message.
    pub quarantined: Vec<Held>,
}

enum Outcome {
    Stored { ahead: bool },
    Duplicate,
    Quarantined(Held),
}

impl Store {
    /// Takes a message in: every envelope is checked, and stored or quarantined.
    ///
    /// It may be called again with the same message, at the same time as well:
    /// what is stored stays, once. The keys that count are those that were
    /// registered at most [`registry_age`](crate::Options::registry_age) ago;
    /// before anything is refused for what is registered, that is read again.
    ///
    /// # Errors
    /// Any, and it means: not all of it is known to be durable, have the message
    /// sent again. [`StoreError::EvidenceFull`] needs a person first.
    pub async fn ingest(&self, message: &[u8], context: &Context) -> Result<Ingested, StoreError> {
        let principal = &context.principal;
        let known = self.remembered(principal).await?;
        let mut verdicts = check(message, context, known.as_deref());
        let rests_on_registry = |verdict: &Verdict| {
            verdict
                .as_ref()
                .is_err_and(|e| e.reason.rests_on_registry())
        };
        if verdicts.iter().any(rests_on_registry) {
            let fresh = self.refreshed(principal).await?;
            if fresh != known {
                verdicts = check(message, context, fresh.as_deref());
            }
        }

        let mut outcomes = self.carry_out(verdicts, context).await?;
        outcomes.sort_by_key(|(place, _)| *place);
        let mut result = Ingested::default();
        for (_, outcome) in outcomes {
            match outcome {
                Outcome::Stored { ahead } => {
                    result.stored += 1;
                    result.ahead += u64::from(ahead);
                }
                Outcome::Duplicate => result.duplicates += 1,
                Outcome::Quarantined(held) => result.quarantined.push(held),
            }
        }
        Ok(result)
    }

    /// Several at once, for the sake of a distant table. A failure does not keep
    /// the others from their end: what they have done need not be done again.
    async fn carry_out(
        &self,
        verdicts: Vec<Verdict>,
        context: &Context,
    ) -> Result<Vec<(usize, Outcome)>, StoreError> {
        let context = Arc::new(context.clone());
        let mut outcomes = Vec::with_capacity(verdicts.len());
        let mut failure = None;
        let mut running = JoinSet::new();
        let mut verdicts = verdicts.into_iter().enumerate();
        loop {
            while running.len() < AT_ONCE {
                let Some((place, verdict)) = verdicts.next() else {
                    break;
                };
                let (store, context) = (self.clone(), Arc::clone(&context));
                running.spawn(async move { (place, store.carry_out_one(verdict, &context).await) });
            }
            match running.join_next().await {
                None => break,
                Some(Ok((place, Ok(outcome)))) => outcomes.push((place, outcome)),
                Some(Ok((_, Err(error)))) => failure = failure.or(Some(error)),
                Some(Err(panic)) => failure = failure.or(Some(StoreError::Stopped(panic.into()))),
            }
        }
        failure.map_or(Ok(outcomes), Err)
    }

    async fn carry_out_one(
        &self,
        verdict: Verdict,
        context: &Context,
    ) -> Result<Outcome, StoreError> {
        let evidence = match verdict {
            Ok(accepted) => match self.put_reading(&accepted, context).await? {
                Put::Stored => {
                    return Ok(Outcome::Stored {
                        ahead: accepted.ahead,
                    });
                }
                Put::Duplicate => return Ok(Outcome::Duplicate),
                Put::Conflict => accepted.conflict(),
            },
            Err(evidence) => evidence,
        };
        Ok(Outcome::Quarantined(self.hold(&evidence, context).await?))
    }
}

/// So many records of a message are written at the same time.
const AT_ONCE: usize = 16;
