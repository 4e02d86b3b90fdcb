//! An audit: all that is stored of a device, told to [`Audit`].

use std::ops::RangeInclusive;

use zk_envelope::{
    DeviceId, Header, Kind, LossReceipt, Report, StreamId, Timestamp, TrustedDevice,
};
use zk_verify::{Audit, Findings};

use crate::Error;
use crate::reader::{Reader, Record, State, all_times};

impl Reader {
    /// What the records of a device say together.
    ///
    /// With [`all_times`] every stored record is part of it. Otherwise
    /// it is about the numbers between the first and the last one in `times`,
    /// and a number that is missing there is looked for at all other times too,
    /// as is a receipt for its loss: a clock that was wrong makes no gap.
    ///
    /// A device of which nothing was heard is clean to [`Findings::is_clean`]:
    /// look at [`Findings::last_heard`] too.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn audit(
        &self,
        device: &DeviceId,
        times: RangeInclusive<Timestamp>,
    ) -> Result<Findings, Error> {
        let nobody = TrustedDevice::default();
        let trusted = self.trust.devices.get(device).unwrap_or(&nobody);
        let whole = times == all_times();
        let mut audit = BoundedAudit::new(Audit::new(device.clone(), trusted, whole));
        let mut records = self.records(device, times.clone());
        while let Some(record) = records.next().await {
            audit.take(&record?);
        }
        if whole {
            return Ok(audit.finish());
        }
        let gaps = Gaps::of(&audit.audit.clone().finish());
        if gaps.0.is_empty() {
            return Ok(audit.finish());
        }
        for times in around(&times).into_iter().flatten() {
            let mut records = self.records(device, times);
            while let Some(record) = records.next().await {
                let record = record?;
                if record.header().is_some_and(|header| gaps.contain(header)) {
                    audit.take(&record);
                } else if let Some((header, received_at, receipt)) = record.loss_receipt()
                    && gaps.overlap(&receipt)
                {
                    let report = Report::LossReceipt(receipt);
                    audit.audit.report(&header, received_at, &report);
                }
            }
        }
        Ok(audit.finish())
    }
}

impl Record {
    fn loss_receipt(&self) -> Option<(Header, Timestamp, LossReceipt)> {
        let State::Open { content, .. } = &self.state else {
            return None;
        };
        let received_at = self.delivery.as_ref()?.received_at;
        match content.report() {
            Ok(Some(Report::LossReceipt(receipt))) => {
                Some((content.header().clone(), received_at, receipt))
            }
            _ => None,
        }
    }
}

/// An audit that what is not proven cannot make grow without end.
struct BoundedAudit {
    audit: Audit,
    /// Items that do not verify, open, or make sense.
    unproven: u64,
}

impl BoundedAudit {
    fn new(audit: Audit) -> Self {
        Self { audit, unproven: 0 }
    }

    fn take(&mut self, record: &Record) {
        let received_at = record
            .delivery
            .as_ref()
            .map(|delivery| delivery.received_at);
        if let (Some(verified), Some(delivery)) = (record.verified(), &record.delivery) {
            self.audit
                .record(verified, delivery.received_at, delivery.again);
        }
        match (&record.state, received_at) {
            (State::Open { content, .. }, Some(received_at)) => match content.report() {
                Ok(None) => {}
                Ok(Some(report)) => self.audit.report(content.header(), received_at, &report),
                // Later versions may add events; the other bodies are fixed.
                Err(_) if content.header().kind == Kind::DeviceEvent => {}
                Err(error) => self.damaged(&record.key, &error.to_string()),
            },
            (State::Sealed { error, .. }, _) => self.damaged(&record.key, &error.to_string()),
            (State::Refused { claimed, reason }, _) => {
                self.unproven += 1;
                if self.unproven <= UNPROVEN {
                    self.audit.refused(claimed, *reason);
                }
            }
            (State::Damaged { detail }, _) => self.damaged(&record.key, detail),
            // What was opened was read, with the time of its receipt.
            (State::Open { .. }, None) => {}
        }
    }

    fn damaged(&mut self, key: &str, detail: &str) {
        self.unproven += 1;
        if self.unproven <= UNPROVEN {
            self.audit.damaged(key, detail);
        }
    }

    fn finish(mut self) -> Findings {
        if let Some(more @ 1..) = self.unproven.checked_sub(UNPROVEN) {
            let detail = format!("{more} that do not verify, open or make sense are only counted");
            self.audit.damaged("other items", &detail);
        }
        self.audit.finish()
    }
}

/// Numbers that are missing without a receipt.
struct Gaps(Vec<(StreamId, RangeInclusive<u64>)>);

impl Gaps {
    fn of(findings: &Findings) -> Self {
        let streams = findings.streams.iter();
        let gaps = streams.flat_map(|stream| {
            let open = stream.missing.iter().filter(|gap| gap.receipt.is_none());
            open.map(|gap| (stream.stream, gap.first..=gap.last))
        });
        let mut gaps: Vec<_> = gaps.collect();
        gaps.sort_by_key(|(stream, numbers)| (*stream, *numbers.start()));
        Self(gaps)
    }

    fn contain(&self, header: &Header) -> bool {
        self.last_from(header.stream, header.sequence)
            .is_some_and(|numbers| numbers.contains(&header.sequence))
    }

    fn overlap(&self, receipt: &LossReceipt) -> bool {
        receipt.range.is_some_and(|range| {
            self.last_from(range.stream, range.last)
                .is_some_and(|numbers| *numbers.end() >= range.first)
        })
    }

    /// The last gap of the stream that begins at or before this number.
    fn last_from(&self, stream: StreamId, sequence: u64) -> Option<&RangeInclusive<u64>> {
        let after = self
            .0
            .partition_point(|(id, numbers)| (*id, *numbers.start()) <= (stream, sequence));
        let (id, numbers) = self.0.get(after.checked_sub(1)?)?;
        (*id == stream).then_some(numbers)
    }
}

/// The times before and after these.
fn around(times: &RangeInclusive<Timestamp>) -> [Option<RangeInclusive<Timestamp>>; 2] {
    let (all_start, all_end) = all_times().into_inner();
    let before = times.start().as_millis().checked_sub(1);
    let after = Timestamp::from_millis(times.end().as_millis() + 1);
    [
        before
            .and_then(Timestamp::from_millis)
            .map(|end| all_start..=end),
        after.map(|start| start..=all_end),
    ]
}

/// So many items of which nothing is proven are told one by one.
const UNPROVEN: u64 = 10_000;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_not_proven_takes_bounded_memory() {
        let device: DeviceId = "pi-01".parse().unwrap();
        let audit = Audit::new(device.clone(), &TrustedDevice::default(), true);
        let mut audit = BoundedAudit::new(audit);
        let record = Record {
            device,
            key: "key".into(),
            delivery: None,
            state: State::Damaged {
                detail: "no envelope".into(),
            },
            alarms: Vec::new(),
            dated: None,
        };
        for _ in 0..UNPROVEN + 3 {
            audit.take(&record);
        }
        let damaged = audit.finish().damaged;
        assert_eq!(damaged.len() as u64, UNPROVEN + 1);
        let last = &damaged.last().unwrap().detail;
        assert!(last.starts_with("3 that do not verify"), "{last}");
    }
}
