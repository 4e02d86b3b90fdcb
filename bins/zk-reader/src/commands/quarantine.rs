//! `zk-reader quarantine`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::RangeInclusive;

use anyhow::anyhow;
use zk_cli::printable;
use zk_envelope::Timestamp;
use zk_reader::{
    quarantine_heading, quarantine_json, quarantine_page, quarantine_rows, replay_json, replay_row,
};
use zk_store::{Quarantined, Store, StoreError};
use zk_verify::topic_of;

use super::{columns, outcome, output, range};
use crate::config::Settings;
use crate::{Failure, Outcome};
use zk_reader::arguments::{Among, ReplayArguments};

pub(crate) async fn list(
    settings: &Settings,
    among: &Among,
    json: bool,
) -> Result<Outcome, Failure> {
    let store = settings.open_store().await?;
    let filter = Filter::new(&store, among).await?;
    let mut to = output();
    let mut newest = BTreeMap::new();
    let (mut total, mut damaged) = (0_u64, 0_u64);
    let mut items = store.quarantine();
    while let Some(item) = items.next().await {
        let Some(held) = readable(item, &mut damaged)? else {
            continue;
        };
        if !filter.takes(&held) {
            continue;
        }
        total += 1;
        if json {
            writeln!(to, "{}", quarantine_json(&held))?;
        } else {
            newest.insert((held.last_received_at, held.id.clone()), held);
            if newest.len() > ROWS {
                newest.pop_first();
            }
        }
    }
    let columns = columns();
    if !newest.is_empty() {
        writeln!(to, "{}", quarantine_heading(columns))?;
    }
    for held in newest.values() {
        for row in quarantine_rows(held, columns) {
            writeln!(to, "{row}")?;
        }
    }
    to.flush()?;
    match total {
        0 if among.is_all() => eprintln!("zk-reader: the quarantine is empty"),
        0 => eprintln!("zk-reader: nothing in the quarantine is like that"),
        total if !json && total > ROWS as u64 => {
            eprintln!(
                "zk-reader: {} older ones; --json lists all",
                total - ROWS as u64
            );
        }
        _ => {}
    }
    tell_overflow(&store, &filter).await?;
    Ok(outcome(damaged == 0))
}

pub(crate) async fn show(settings: &Settings, id: &str, json: bool) -> Result<Outcome, Failure> {
    let store = settings.open_store().await?;
    let Some(held) = store.quarantined(id).await? else {
        return Err(anyhow!(absent(&store, id).await?).into());
    };
    let mut to = output();
    if json {
        writeln!(to, "{}", quarantine_json(&held))?;
    } else {
        write!(to, "{}", quarantine_page(&held))?;
    }
    to.flush()?;
    Ok(Outcome::Fine)
}

pub(crate) async fn replay(
    settings: &Settings,
    arguments: &ReplayArguments,
) -> Result<Outcome, Failure> {
    if arguments.ids.is_empty() && !arguments.all && arguments.among.is_all() {
        return Err(Failure::Usage(
            "nothing to replay: give ids, or --all, or what they have in common, such as \
             --reason unknown-device"
                .into(),
        ));
    }
    let store = settings.open_store().await?;
    let filter = Filter::new(&store, &arguments.among).await?;
    let (mut damaged, mut failed) = (0, 0_u64);
    // All that there is before anything is changed: parts of a batch that stay
    // are not replayed again.
    let ids = if arguments.ids.is_empty() {
        let mut found = BTreeSet::new();
        let mut items = store.quarantine();
        while let Some(item) = items.next().await {
            let held = readable(item, &mut damaged)?;
            let held = held.filter(|held| filter.takes(held));
            found.extend(held.map(|held| (held.context.received_at, held.id)));
        }
        found.into_iter().map(|(_, id)| id).collect()
    } else {
        arguments.ids.clone()
    };
    let mut to = output();
    let (mut leave, mut stay) = (0_u64, 0_u64);
    let (mut stored, mut duplicates) = (0_u64, 0_u64);
    for id in &ids {
        let replayed = if arguments.apply {
            store.replay(id).await
        } else {
            store.rehearse(id).await
        };
        let replayed = match replayed {
            Ok(replayed) => replayed,
            // Somebody else was faster.
            Err(StoreError::NotQuarantined { .. }) if arguments.ids.is_empty() => continue,
            Err(StoreError::NotQuarantined { .. }) => {
                failed += 1;
                eprintln!("zk-reader: {}", printable(&absent(&store, id).await?));
                continue;
            }
            Err(error @ (StoreError::EvidenceFull { .. } | StoreError::Damaged { .. })) => {
                failed += 1;
                eprintln!("zk-reader: {}", printable(&format!("{id}: {error}")));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if replayed.leaves {
            leave += 1;
        } else {
            stay += 1;
        }
        stored += replayed.ingested.stored;
        duplicates += replayed.ingested.duplicates;
        if arguments.json {
            writeln!(to, "{}", replay_json(id, &replayed, arguments.apply))?;
        } else {
            writeln!(to, "{}", replay_row(id, &replayed, arguments.apply))?;
        }
        to.flush()?;
    }
    let (leave_it, records, hint) = if arguments.apply {
        ("left", "stored", "")
    } else {
        (
            "would leave",
            "to be stored",
            "; nothing was changed, --apply does it",
        )
    };
    eprintln!(
        "zk-reader: {leave} of {} {leave_it} the quarantine, {stay} stay, {failed} failed; \
         records {records}: {stored}, stored before: {duplicates}{hint}",
        leave + stay + failed
    );
    if arguments.ids.is_empty() {
        tell_overflow(&store, &filter).await?;
    }
    if failed > 0 {
        return Err(anyhow!("not all could be replayed").into());
    }
    Ok(outcome(stay == 0 && damaged == 0))
}

/// What is asked for.
struct Filter<'a> {
    among: &'a Among,
    times: RangeInclusive<Timestamp>,
    topic: Option<String>,
    /// Those of the device.
    principals: BTreeSet<String>,
}

impl<'a> Filter<'a> {
    async fn new(store: &Store, among: &'a Among) -> Result<Self, Failure> {
        let mut principals = BTreeSet::new();
        if let Some(device) = &among.device {
            let registered = store.devices().await?.into_iter();
            let of_device = registered.filter(|(_, record)| record.device == *device);
            principals.extend(of_device.map(|(principal, _)| principal));
        }
        Ok(Self {
            among,
            times: range(among.from, among.to)?,
            topic: among.device.as_ref().map(topic_of),
            principals,
        })
    }

    fn takes(&self, held: &Quarantined) -> bool {
        let of_device = self.topic.as_ref().is_none_or(|topic| {
            held.context.topic == *topic || self.principals.contains(&held.context.principal)
        });
        of_device
            && self.takes_principal(&held.context.principal)
            && (self.among.reason.is_empty() || self.among.reason.contains(&held.reason))
            && self.times.contains(&held.last_received_at)
    }

    fn takes_principal(&self, principal: &str) -> bool {
        let wanted = self.among.principal.as_deref();
        wanted.is_none_or(|wanted| wanted == principal)
    }
}

/// `None` for what is damaged, which is told.
fn readable(
    item: Result<Quarantined, StoreError>,
    damaged: &mut u64,
) -> Result<Option<Quarantined>, StoreError> {
    match item {
        Err(error @ StoreError::Damaged { .. }) => {
            *damaged += 1;
            eprintln!("zk-reader: {}", printable(&error.to_string()));
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Why there is nothing under an id.
async fn absent(store: &Store, id: &str) -> Result<String, StoreError> {
    let counted = store.overflow().await?;
    if counted.iter().any(|over| over.last_id == id) {
        return Ok(format!(
            "{id}: of this message only the hash was kept, because its sender's part of the \
             quarantine was full: it can be neither shown nor replayed"
        ));
    }
    Ok(format!(
        "there is nothing under {id} in the quarantine; `zk-reader quarantine list` shows what \
         there is, with whole ids"
    ))
}

async fn tell_overflow(store: &Store, filter: &Filter<'_>) -> Result<(), Failure> {
    for over in store.overflow().await? {
        let device = filter.topic.is_none() || filter.principals.contains(&over.principal);
        if !device || !filter.takes_principal(&over.principal) {
            continue;
        }
        let line = format!(
            "{} messages of certificate {} did not fit and were only counted, the last at {}: \
             they can't be replayed",
            over.messages, over.principal, over.last_received_at
        );
        eprintln!("zk-reader: {}", printable(&line));
    }
    Ok(())
}

/// So many are shown.
const ROWS: usize = 1000;
