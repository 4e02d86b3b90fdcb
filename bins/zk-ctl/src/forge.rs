//! `zk-ctl publish --forge`: what somebody else might try, to see that it is not
//! believed. Nothing of it goes through a spool, and each forgery has a stream
//! of its own, so that the streams of real data stay complete.

use std::sync::Arc;

use serde_json::json;
use zk_agent::MAX_DATA;
use zk_envelope::{Content, DeviceEvent, DeviceId, Entry, Message, Report, StreamId};
use zk_publish::{Client, Delivered, PublishError, Timeouts};

use crate::Error;
use crate::arguments::{Common, Forgery, Publish};
use crate::device::Device;
use crate::files;
use crate::outcome::{Outcome, table};
use crate::publish::FITS;

pub(crate) fn forge(
    common: &Common,
    arguments: &Publish,
    forgery: Forgery,
) -> Result<Outcome, Error> {
    let device = Device::open(common, &arguments.endpoint)?;
    let body = match &arguments.file {
        Some(file) => files::read(Some(file), MAX_DATA, FITS)?,
        None => b"forged by zk-ctl".to_vec().into(),
    };
    let content_type = arguments.content_type.as_deref().unwrap_or("text/plain");

    let random = device.hsm.random(16);
    let random = random.map_err(|error| Error::hsm(device.hsm.uri(), error))?;
    let mut stream = StreamId([0; 16]);
    stream.0.copy_from_slice(&random);
    let claims = match forgery {
        Forgery::Device => another(&device.config.device.id)?,
        Forgery::Signature | Forgery::Replay => device.config.device.id.clone(),
    };
    // A replayed record is taken at first, so its stream has to begin like any other.
    let started = Report::DeviceEvent(DeviceEvent::StreamStarted { previous: None });
    let started = seal(&device, &claims, stream, 1, Content::Report(&started))?;
    let content = Content::Data {
        content_type,
        body: &body,
    };
    let mut message = Message {
        device_id: claims.to_string(),
        entries: vec![seal(&device, &claims, stream, 2, content)?],
    };
    if forgery == Forgery::Signature {
        change(&mut message);
    }
    let messages = match forgery {
        Forgery::Replay => {
            let mut first = message.clone();
            first.entries.insert(0, started);
            vec![first, message]
        }
        Forgery::Device | Forgery::Signature => vec![message],
    };

    let answers = send(&device, arguments, &messages)?;
    Ok(outcome(forgery, &claims, stream, &answers))
}

fn outcome(
    forgery: Forgery,
    claims: &DeviceId,
    stream: StreamId,
    answers: &[Result<Delivered, PublishError>],
) -> Outcome {
    let (made, expected, look) = match forgery {
        Forgery::Signature => (
            "a record that was changed after it was signed".to_owned(),
            json!({ "quarantine": "bad-signature", "stored": 0 }),
            "in quarantine: bad-signature",
        ),
        Forgery::Device => (
            format!("a record that claims to be of {claims}"),
            json!({ "quarantine": "principal-mismatch", "stored": 0 }),
            "in quarantine: principal-mismatch (unknown-device, if this device is not registered)",
        ),
        Forgery::Replay => (
            "a true record, sent twice".to_owned(),
            json!({ "quarantine": null, "stored": 2 }),
            "nothing in quarantine; the record is stored once, behind the beginning of its stream, \
             and one duplicate counted",
        ),
    };
    let mut rows = vec![
        ["forged".to_owned(), made],
        ["stream".to_owned(), stream.to_string()],
    ];
    rows.extend(answers.iter().map(|answer| {
        let text = match answer {
            Ok(delivered) => match &delivered.trace_id {
                Some(id) => format!("taken (trace id {id})"),
                None => "taken".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        ["answer".to_owned(), text]
    }));
    let taken = answers.iter().all(Result::is_ok);
    if taken {
        rows.push(["expected".to_owned(), look.to_owned()]);
    }
    let list: Vec<_> = answers
        .iter()
        .map(|answer| match answer {
            Ok(delivered) => json!({ "taken": true, "traceId": delivered.trace_id }),
            Err(error) => json!({ "taken": false, "error": error.to_string() }),
        })
        .collect();
    let outcome = Outcome::done(
        table(&rows),
        json!({
            "outcome": if taken { "taken" } else { "refused" },
            "forgery": forgery_name(forgery),
            "claimed": claims.as_str(),
            "stream": stream.to_string(),
            "answers": list,
            "expected": taken.then_some(expected),
        }),
    );
    if taken {
        outcome.hint("To see it, as the owner: zk-reader quarantine list, and zk-reader audit.")
    } else {
        let outcome = Outcome { exit: 5, ..outcome };
        outcome.hint("The server did not even take it to quarantine: see zk-ctl doctor.")
    }
}

/// A record, rightly encrypted and signed.
fn seal(
    device: &Device,
    claims: &DeviceId,
    stream: StreamId,
    sequence: u64,
    content: Content<'_>,
) -> Result<Entry, Error> {
    let mut sealer = zk_envelope::Sealer::new(
        claims.clone(),
        stream,
        device.hsm.public_key(),
        &device.owners,
    )
    .map_err(Error::Seal)?;
    let envelope = sealer
        .seal(&device.hsm, &device.clock.now(), sequence, content)
        .map_err(Error::Seal)?;
    Ok(Entry::from(&envelope))
}

/// Turns one bit of the ciphertext over: the tag behind it has 32 bytes.
fn change(message: &mut Message) {
    for entry in &mut message.entries {
        if let Some(byte) = entry.encrypted_data.iter_mut().rev().nth(32) {
            *byte ^= 1;
        }
    }
}

/// A device that this one is not.
fn another(own: &DeviceId) -> Result<DeviceId, Error> {
    let name = match own.as_str() {
        "another-device" => "yet-another-device",
        _ => "another-device",
    };
    DeviceId::try_from(name).map_err(Error::Seal)
}

/// The server's answers, up to the first by which it refuses.
fn send(
    device: &Device,
    arguments: &Publish,
    messages: &[Message],
) -> Result<Vec<Result<Delivered, PublishError>>, Error> {
    let limit = arguments.timeout;
    let default = Timeouts::default();
    let timeouts = Timeouts {
        connect: default.connect.min(limit),
        handshake: default.handshake.min(limit),
        response: default.response.min(limit),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Thread)?;
    let mut client = Client::new(device.target.clone(), Arc::clone(&device.tls), timeouts);
    let mut answers = Vec::new();
    for message in messages {
        let message = message.to_json().map_err(Error::Seal)?;
        match runtime.block_on(client.publish(message)) {
            Ok(delivered) => answers.push(Ok(delivered)),
            Err(
                error @ (PublishError::CertificateRefused { .. }
                | PublishError::Forbidden { .. }
                | PublishError::Refused { .. }),
            ) => {
                answers.push(Err(error));
                break;
            }
            Err(error) => return Err(Error::Publish(error)),
        }
    }
    Ok(answers)
}

fn forgery_name(forgery: Forgery) -> &'static str {
    match forgery {
        Forgery::Device => "device",
        Forgery::Replay => "replay",
        Forgery::Signature => "signature",
    }
}
