//! `zk-ctl hsm`: the device's key, used by hand.

mod health;
mod watch;

use std::path::Path;

use p256::PublicKey;
use p256::ecdsa::signature::Verifier;
use serde_json::{Value, json};
use zeroize::Zeroizing;
use zk_envelope::KeyId;
use zk_hsm::{
    BackendKind, Hsm, MAX_LOCK, Options, Signature, Subject, VerifyingKey, generate_key, list_keys,
};

pub(crate) use self::health::Report;
use crate::arguments::{Common, Csr, HsmCommand, KeysCommand, Transform, Verify};
use crate::outcome::{Outcome, Output, table};
use crate::{Error, files};

pub(crate) fn run(common: &Common, command: &HsmCommand, json: bool) -> Result<Outcome, Error> {
    match command {
        HsmCommand::Info => info(&common.key()?),
        HsmCommand::PublicKey { hex } => public_key(&common.key()?, *hex),
        HsmCommand::Csr(csr) => {
            let name = match &csr.name {
                Some(name) => name.clone(),
                None => common.read()?.device.id,
            };
            request(&common.key()?, name.as_str(), csr)
        }
        HsmCommand::Sign(files) => sign(&common.key()?, files),
        HsmCommand::Verify(verify) => self::verify(common, verify),
        HsmCommand::Lock(files) => lock(&common.key()?, files),
        HsmCommand::Unlock(files) => {
            if files.out.is_none() {
                files::no_secret_to_terminal()?;
            }
            unlock(&common.key()?, files)
        }
        HsmCommand::Random { bytes, raw } => random(&common.key()?, *bytes as usize, *raw),
        HsmCommand::Keys(KeysCommand::List) => list(common),
        HsmCommand::Keys(KeysCommand::Generate) => generate(common),
        HsmCommand::Watch(watch) => watch::watch(common, watch, json),
    }
}

fn info(hsm: &Hsm) -> Result<Outcome, Error> {
    let failed = |error| Error::hsm(hsm.uri(), error);
    let info = hsm.info().map_err(failed)?;
    let report = Report::new(&hsm.health().map_err(failed)?);
    let key = KeyId::of(hsm.public_key());
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let mut rows = vec![
        ["uri", &hsm.uri().to_string()].map(str::to_owned),
        ["backend", &info.backend.to_string()].map(str::to_owned),
        ["model", &or_none(&info.model)].map(str::to_owned),
        ["serial", &or_none(&info.serial)].map(str::to_owned),
        ["firmware", &or_none(&info.firmware)].map(str::to_owned),
        ["key", &key.to_string()].map(str::to_owned),
        [
            "protected",
            if info.development {
                "no: for development"
            } else {
                "by hardware"
            },
        ]
        .map(str::to_owned),
    ];
    rows.extend(
        report
            .items()
            .into_iter()
            .map(|(name, text)| [name.to_owned(), text]),
    );
    let untold = report.untold();
    if !untold.is_empty() {
        rows.push(["not told".to_owned(), untold.join(", ")]);
    }
    Ok(Outcome::done(
        table(&rows),
        json!({
            "uri": hsm.uri().to_string(),
            "backend": info.backend.to_string(),
            "model": info.model,
            "serial": info.serial,
            "firmware": info.firmware,
            "development": info.development,
            "key": key.to_string(),
            "health": report.to_json(),
            "notTold": untold,
        }),
    ))
}

fn public_key(hsm: &Hsm, hex: bool) -> Result<Outcome, Error> {
    let pem = PublicKey::from(*hsm.public_key()).to_string();
    let point = point(hsm.public_key());
    let key = KeyId::of(hsm.public_key()).to_string();
    let json = json!({ "publicKey": pem, "hex": point, "key": key });
    let text = if hex {
        point
    } else {
        pem.trim_end().to_owned()
    };
    Ok(Outcome::done(text, json))
}

/// X and Y, 32 bytes each, big-endian, in hexadecimal.
fn point(key: &VerifyingKey) -> String {
    let point = key.to_sec1_point(false);
    // without the first byte, 04
    base16ct::lower::encode_string(point.as_bytes().get(1..).unwrap_or_default())
}

fn request(hsm: &Hsm, name: &str, csr: &Csr) -> Result<Outcome, Error> {
    let pem = hsm
        .csr(subject(name, csr))
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    let out = csr.out.as_deref();
    let json = json!({ "device": name, "csr": pem, "out": out });
    let Some(out) = out else {
        return Ok(Outcome::done(pem.trim_end().to_owned(), json));
    };
    files::write_new(out, pem.as_bytes())?;
    let out = out.display();
    Ok(Outcome::done(format!("created  {out}"), json).hint(format!(
        "Next, where the authorities are: zk-setup device add {name} --csr {out}"
    )))
}

fn subject(name: &str, csr: &Csr) -> Subject {
    let mut subject = Subject::new(name);
    let set = |subject, value: &Option<String>, with: fn(Subject, String) -> Subject| match value {
        Some(value) => with(subject, value.clone()),
        None => subject,
    };
    subject = set(subject, &csr.organization, Subject::organization);
    subject = set(
        subject,
        &csr.organizational_unit,
        Subject::organizational_unit,
    );
    subject = set(subject, &csr.state, Subject::state);
    subject = set(subject, &csr.country, Subject::country);
    subject = set(subject, &csr.serial_number, Subject::serial_number);
    subject = csr.dns.iter().fold(subject, Subject::dns_name);
    subject = csr.ip.iter().copied().fold(subject, Subject::ip_address);
    csr.uri.iter().fold(subject, Subject::uri)
}

fn sign(hsm: &Hsm, transform: &Transform) -> Result<Outcome, Error> {
    let input = files::read(
        transform.file.as_deref(),
        MAX_SIGNED,
        "can be signed at once; sign a digest of it instead",
    )?;
    let signature = hsm
        .sign(&preimage(&input))
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    let der = signature.to_der();
    let out = transform.out.as_deref();
    let key = KeyId::of(hsm.public_key()).to_string();
    let json = json!({
        "signature": base16ct::lower::encode_string(der.as_bytes()),
        "rs": base16ct::lower::encode_string(&signature_bytes(&signature)),
        "label": LABEL,
        "key": key,
        "out": out,
    });
    let Some(out) = out else {
        let text = base16ct::lower::encode_string(der.as_bytes());
        return Ok(Outcome::done(text, json)
            .hint("openssl verifies it from a file: see --out, and zk-ctl hsm sign --help."));
    };
    if out == Path::new("-") {
        return Ok(Outcome {
            output: Output::Bytes(Zeroizing::new(der.as_bytes().to_vec())),
            ..Outcome::done(String::new(), json)
        });
    }
    files::write_new(out, der.as_bytes())?;
    let file = transform.file.as_deref().unwrap_or(Path::new("-"));
    Ok(Outcome::done(format!("created  {}", out.display()), json)
        .hint(format!(
            "To verify: zk-ctl hsm verify {} --signature {}",
            quoted(file),
            quoted(out)
        ))
        .hint("or, with the key from zk-ctl hsm public-key in KEY.pem:")
        .hint(format!(
            "  (printf '{LABEL}\\0'; cat {}) | openssl dgst -sha256 -verify KEY.pem -signature {}",
            quoted(file),
            quoted(out)
        )))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// What is signed: it begins with a label, so that it is no bytes of a record
/// (`ZKE1`), of TLS (spaces, or a handshake's type) or of a certificate request
/// (DER). To be able to sign files is not to be able to publish.
pub(crate) fn preimage(bytes: &[u8]) -> Vec<u8> {
    [LABEL.as_bytes(), &[0], bytes].concat()
}

fn signature_bytes(signature: &Signature) -> [u8; 64] {
    signature.to_bytes().into()
}

fn verify(common: &Common, verify: &Verify) -> Result<Outcome, Error> {
    let (file, from) = (verify.file.as_deref(), &verify.signature);
    let standard_input = |path: Option<&Path>| path.is_none_or(|path| path == Path::new("-"));
    if standard_input(file) && standard_input(Some(from)) {
        return Err(Error::TwiceStandardInput);
    }
    let key = match &verify.public_key {
        Some(path) => public_key_in(path)?,
        None => *common.key()?.public_key(),
    };
    let signature = files::read(
        Some(from),
        MAX_SIGNATURE,
        "a signature can have; it is none",
    )?;
    let input = files::read(file, MAX_SIGNED, "can have been signed")?;
    let message = preimage(&input);
    let found = signatures(&signature);
    let valid = found
        .iter()
        .any(|signature| key.verify(&message, signature).is_ok());
    let id = KeyId::of(&key);
    let text = if valid {
        format!("valid    signed by key {id}")
    } else if found.is_empty() {
        format!("INVALID  {} holds no ECDSA P-256 signature", from.display())
    } else {
        format!("INVALID  not what key {id} signed with zk-ctl hsm sign")
    };
    let json = json!({
        "valid": valid,
        "key": id.to_string(),
        "label": LABEL,
        "wellFormed": !found.is_empty(),
    });
    Ok(Outcome {
        exit: if valid { 0 } else { 3 },
        ..Outcome::done(text, json)
    })
}

/// What a file can mean as a signature: DER, r and s, or either in hexadecimal.
/// 64 bytes can be both.
fn signatures(bytes: &[u8]) -> Vec<Signature> {
    let text = str::from_utf8(bytes).unwrap_or_default().trim();
    let decoded = base16ct::mixed::decode_vec(text).unwrap_or_default();
    [bytes, &decoded]
        .into_iter()
        .flat_map(|bytes| [Signature::from_der(bytes), Signature::from_slice(bytes)])
        .flatten()
        .collect()
}

fn public_key_in(path: &Path) -> Result<VerifyingKey, Error> {
    let bytes = files::read(Some(path), MAX_PUBLIC_KEY, "a public key can have")?;
    let text = str::from_utf8(&bytes).unwrap_or_default().trim();
    let key = text.parse::<PublicKey>().ok().or_else(|| {
        let point = base16ct::mixed::decode_vec(text).ok()?;
        let point = [&[4], &point[..]].concat();
        PublicKey::from_sec1_bytes(&point).ok()
    });
    match key {
        Some(key) => Ok(key.into()),
        None => Err(Error::PublicKey { path: path.into() }),
    }
}

fn lock(hsm: &Hsm, transform: &Transform) -> Result<Outcome, Error> {
    if transform.out.is_none() {
        files::not_to_terminal()?;
    }
    let input = files::read(
        transform.file.as_deref(),
        MAX_LOCK,
        "can be locked at once; lock a key instead, and encrypt with that",
    )?;
    let locked = hsm
        .lock(&input)
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    result(Zeroizing::new(locked), transform.out.as_deref())
}

fn unlock(hsm: &Hsm, transform: &Transform) -> Result<Outcome, Error> {
    let input = files::read(
        transform.file.as_deref(),
        MAX_LOCKED,
        "a locked file can have; it is none",
    )?;
    let plain = hsm
        .unlock(&input)
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    result(plain, transform.out.as_deref())
}

/// Bytes into a file, or to standard output.
fn result(bytes: Zeroizing<Vec<u8>>, out: Option<&Path>) -> Result<Outcome, Error> {
    let len = bytes.len();
    if let Some(out) = out.filter(|out| *out != Path::new("-")) {
        files::write_new(out, &bytes)?;
        return Ok(Outcome::done(
            format!("created  {}, {len} bytes", out.display()),
            json!({ "out": out, "bytes": len }),
        ));
    }
    Ok(Outcome {
        output: Output::Bytes(bytes),
        ..Outcome::done(String::new(), json!({ "bytes": len }))
    })
}

fn random(hsm: &Hsm, len: usize, raw: bool) -> Result<Outcome, Error> {
    if raw {
        files::not_to_terminal()?;
    }
    let bytes = hsm
        .random(len)
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    if raw {
        return result(bytes, None);
    }
    let text = base16ct::lower::encode_string(&bytes);
    let json = json!({ "data": text, "bytes": len });
    Ok(Outcome::done(text, json))
}

fn list(common: &Common) -> Result<Outcome, Error> {
    let uri = common.key_uri()?;
    let keys =
        list_keys(&uri, Options::default().deadline).map_err(|error| Error::hsm(&uri, error))?;
    let mut rows = vec![["KEY", "URI"].map(str::to_owned)];
    let mut list: Vec<Value> = Vec::new();
    for entry in &keys {
        let key = entry
            .public_key
            .as_ref()
            .map(|key| KeyId::of(key).to_string());
        let text = key.clone().unwrap_or_else(|| "not told".to_owned());
        rows.push([text, entry.uri.to_string()]);
        list.push(json!({
            "uri": entry.uri.to_string(),
            "key": key,
            "hex": entry.public_key.as_ref().map(point),
        }));
    }
    let text = match keys.len() {
        0 => "no keys".to_owned(),
        _ => table(&rows),
    };
    let outcome = Outcome::done(text, json!({ "keys": list }));
    Ok(match keys.len() {
        0 => outcome.hint("zk-ctl hsm keys generate makes one."),
        _ => outcome,
    })
}

fn generate(common: &Common) -> Result<Outcome, Error> {
    let uri = common.key_uri()?;
    let made =
        generate_key(&uri, Options::default().deadline).map_err(|error| Error::hsm(&uri, error))?;
    let text = made.to_string();
    let outcome = Outcome::done(text.clone(), json!({ "uri": text }))
        .hint(format!("Into the configuration: device.hsm = {text:?}"))
        .hint(format!(
            "Next: zk-ctl hsm csr --hsm {} --name DEVICE --out DEVICE.csr.pem",
            quoted(Path::new(&text))
        ));
    Ok(match made.backend() {
        BackendKind::Soft => {
            outcome.hint("Whoever reads this file has the key: it is for development.")
        }
        _ => outcome,
    })
}

/// What every signature of `zk-ctl` begins with, before a zero byte.
const LABEL: &str = "zk-ctl/1 signature";

/// All of it is in memory while it is signed.
const MAX_SIGNED: usize = 64 << 20;

/// A backend adds at most 4 KiB.
const MAX_LOCKED: usize = MAX_LOCK + 4096;

/// In hexadecimal, with room for what editors put around it.
const MAX_SIGNATURE: usize = 1024;
const MAX_PUBLIC_KEY: usize = 4096;
