//! From nothing, or from whatever is there, to what is to be, and away again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use p256::ecdsa::SigningKey;
use tempfile::TempDir;
use zk_envelope::{KeyState, OwnerKey, TrustFile};
use zk_provision::{
    Action, Age, Desired, DesiredDevice, DesiredKey, Destroy, Error, Item, LocalSetup, Others,
    Passphrase, Plan, Secrets, Standing, Step, Verdict,
};
use zk_store::{Options, Store};

use crate::common::{authorities, id, key, names, now, passphrase, request, years};

#[tokio::test]
async fn from_nothing_in_one_go_and_a_second_time_all_is_kept() {
    let world = World::empty();
    let desired = world.desired(&[("pi-01", &key())]);
    let plan = world.plan(&desired).await;
    assert_eq!(plan.needs.authorities, Some(Age::New));
    assert_eq!(plan.needs.owner, Some(Age::New));
    assert!(plan.steps.iter().all(|step| step.action == Action::Created));
    assert!(!world.setup.dir().exists(), "a plan wrote something");

    let steps = world.apply(&desired).await.unwrap();
    assert_eq!(shown(&steps), shown(&plan.steps));
    let again = world.plan(&desired).await;
    assert!(!again.has_changes(), "{:?}", shown(&again.steps));
    assert_eq!(again.needs.authorities, None);
    let before = tree(world.setup.dir());
    let steps = world.apply(&desired).await.unwrap();
    assert!(steps.iter().all(|step| step.action == Action::Kept));
    assert_eq!(tree(world.setup.dir()), before);

    // and it is what it says: the owner's key opens, the device is in order
    let owner = OwnerKey::read(&world.setup.owner_key_file(), OWNER).unwrap();
    let trust = TrustFile::read(&world.setup.trust_file()).unwrap();
    assert_eq!(trust.devices[&id("pi-01")].owners, [owner.id()].into());
    assert_eq!(
        world.standings().await,
        [("pi-01".into(), Standing::Active)]
    );
    assert_eq!(world.wrong().await, [""; 0]);
}

/// Whatever is missing: the plan says it, writes nothing, and is what is done.
#[tokio::test]
async fn a_plan_tells_what_apply_does_and_writes_nothing() {
    let world = World::with_authorities();
    let key = key();
    let desired = world.desired(&[("pi-01", &key)]);
    world.apply(&desired).await.unwrap();
    let whole = tree(world.setup.dir());
    let not_to_be_lost = ["ca/device-ca.key.pem", "ca/gateway-ca.key.pem"];
    for lost in whole.keys() {
        if not_to_be_lost.iter().any(|name| lost.ends_with(name)) || lost.ends_with(".lock") {
            continue;
        }
        if lost.to_str().unwrap().contains("store.db-") {
            continue;
        }
        fs::remove_file(world.setup.dir().join(lost)).unwrap();
        let before = tree(world.setup.dir());
        let plan = world.plan(&desired).await;
        assert_eq!(tree(world.setup.dir()), before, "{}", lost.display());
        let steps = world.apply(&desired).await.unwrap();
        assert_eq!(shown(&plan.steps), shown(&steps), "{}", lost.display());
        let plan = world.plan(&desired).await;
        assert!(
            !plan.has_changes(),
            "{}: {:?}",
            lost.display(),
            shown(&plan.steps)
        );
        assert_eq!(world.wrong().await, [""; 0], "{}", lost.display());
        assert_eq!(
            world.standings().await,
            [("pi-01".into(), Standing::Active)]
        );
        // an owner may keep the key elsewhere
        let file = world.setup.dir().join(lost);
        if !file.exists() {
            fs::write(&file, &whole[lost].1).unwrap();
            chmod(&file, whole[lost].0);
        }
    }
}

/// Nobody else shall read what devices send because a file is lost.
#[tokio::test]
async fn a_lost_trust_file_makes_no_new_owner() {
    let world = World::with_authorities();
    let owner = OwnerKey::generate().unwrap();
    let mut desired = world.desired(&[("pi-01", &key())]);
    desired.owners = vec![owner.public_key().clone()];
    world.apply(&desired).await.unwrap();
    fs::remove_file(world.setup.trust_file()).unwrap();
    let before = tree(world.setup.dir());
    desired.owners.clear();
    let error = world.apply(&desired).await.unwrap_err();
    assert!(
        error.to_string().contains("restore it from a backup"),
        "{error}"
    );
    assert_eq!(tree(world.setup.dir()), before);
    desired.owners = vec![owner.public_key().clone()];
    world.apply(&desired).await.unwrap();
    assert_eq!(world.wrong().await, [""; 0]);
}

/// Stopped after any step, the next run ends where one that was not would have.
#[test]
fn an_apply_that_stops_anywhere_is_completed_by_the_next() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let key = key();
    let (whole, count) = {
        let world = World::with_authorities();
        let desired = world.desired(&[("pi-01", &key)]);
        let steps = runtime.block_on(world.apply(&desired)).unwrap();
        (paths(world.setup.dir()), steps.len())
    };
    assert!(count > 15, "{count}");
    for last in 0..count {
        let world = World::with_authorities();
        let desired = world.desired(&[("pi-01", &key)]);
        let mut seen = 0;
        let mut tell = |_: &Step| {
            seen += 1;
            assert!(seen <= last, "stopped, as it is to be");
        };
        let (of_authorities, of_owner) = (passphrase(), owner_passphrase());
        let secrets = Secrets {
            authorities: Some(&of_authorities),
            owner: Some(&of_owner),
        };
        let stopped = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(world.setup.apply(&desired, secrets, now(), &mut tell))
        }));
        assert!(stopped.is_err());
        runtime.block_on(async {
            world.apply(&desired).await.unwrap();
            let plan = world.plan(&desired).await;
            assert!(!plan.has_changes(), "{last}: {:?}", shown(&plan.steps));
            assert_eq!(world.wrong().await, [""; 0]);
            assert_eq!(
                world.standings().await,
                [("pi-01".into(), Standing::Active)]
            );
        });
        assert_eq!(paths(world.setup.dir()), whole, "stopped after {last}");
    }
}

#[tokio::test]
async fn what_changes_says_why() {
    let world = World::with_authorities();
    let mut desired = world.desired(&[("pi-01", &key())]);
    world.apply(&desired).await.unwrap();
    desired.gateway.names = names(&["gateway.example"]);
    let plan = world.plan(&desired).await;
    let change = changes(&plan);
    assert_eq!(
        change,
        [(
            "gateway/gateway.crt.pem".to_owned(),
            "names: gateway.example instead of localhost".to_owned()
        )]
    );
    let plan = world
        .setup
        .plan(&world.desired(&[]), now() + years(7))
        .await
        .unwrap();
    let change = changes(&plan);
    assert!(
        change.contains(&(
            "devices/pi-01/device.crt.pem".into(),
            "due: valid until 2036-11-20".into()
        )),
        "{change:?}"
    );
    // the key that is known is enough for a new certificate
    let of_authorities = passphrase();
    let secrets = Secrets {
        authorities: Some(&of_authorities),
        owner: None,
    };
    let (desired, later) = (world.desired(&[]), now() + years(7));
    world
        .setup
        .apply(&desired, secrets, later, &mut |_| {})
        .await
        .unwrap();
    let plan = world.setup.plan(&desired, later).await.unwrap();
    assert!(!plan.has_changes(), "{:?}", shown(&plan.steps));
}

#[tokio::test]
async fn without_its_passphrase_nothing_is_signed() {
    let world = World::with_authorities();
    let desired = world.desired(&[("pi-01", &key())]);
    let error = world
        .setup
        .apply(&desired, Secrets::default(), now(), &mut |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, Error::PassphraseNeeded { .. }), "{error}");
    let wrong = Passphrase::new("incorrect horse".to_owned()).unwrap();
    let secrets = Secrets {
        authorities: Some(&wrong),
        owner: None,
    };
    let error = world
        .setup
        .apply(&desired, secrets, now(), &mut |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongPassphrase { .. }), "{error}");
}

#[tokio::test]
async fn a_device_that_is_not_named_any_more_is_revoked_and_its_files_go() {
    let world = World::with_authorities();
    let (one, two) = (key(), key());
    world
        .apply(&world.desired(&[("pi-01", &one), ("pi-02", &two)]))
        .await
        .unwrap();
    let foreign = world.setup.dir().join("devices/pi-02/notes.txt");
    fs::write(&foreign, "mine").unwrap();
    let mut desired = world.desired(&[("pi-01", &one)]);
    assert!(!world.plan(&desired).await.has_changes());
    desired.others = Others::Remove;
    let plan = world.plan(&desired).await;
    assert_eq!(plan.revokes, [id("pi-02")]);
    let steps = world.apply(&desired).await.unwrap();
    assert_eq!(shown(&steps), shown(&plan.steps));
    assert_eq!(
        world.standings().await,
        [
            ("pi-01".into(), Standing::Active),
            ("pi-02".into(), Standing::Revoked)
        ]
    );
    let left: Vec<_> = fs::read_dir(foreign.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let plan = world.plan(&desired).await;
    assert!(!plan.has_changes(), "{:?}", shown(&plan.steps));
    assert!(plan.revokes.is_empty());
}

/// Somebody adds a device while another one thinks about a plan.
#[tokio::test]
async fn only_those_are_revoked_that_somebody_has_agreed_to() {
    let world = World::with_authorities();
    let (one, two) = (key(), key());
    let both = world.desired(&[("pi-01", &one), ("pi-02", &two)]);
    world
        .apply(&world.desired(&[("pi-01", &one)]))
        .await
        .unwrap();
    let mut nobody = world.desired(&[]);
    nobody.others = Others::Remove;
    let plan = world.plan(&nobody).await;
    world.apply(&both).await.unwrap();
    nobody.others = Others::RemoveThese(plan.revokes);
    let error = world.apply(&nobody).await.unwrap_err();
    assert!(matches!(error, Error::NotAgreed { .. }), "{error}");
    assert_eq!(
        world.standings().await,
        [
            ("pi-01".into(), Standing::Revoked),
            ("pi-02".into(), Standing::Active)
        ]
    );
}

/// As a killed run leaves it: trusted, not registered; or revoked on one side.
#[tokio::test]
async fn no_device_stays_half_registered() {
    let world = World::with_authorities();
    let key = key();
    let desired = world.desired(&[("pi-01", &key)]);
    world.apply(&desired).await.unwrap();
    let store = world.store().await;
    let (principal, _) = store.devices().await.unwrap().remove(0);
    store.remove_device(&principal).await.unwrap();
    store.close().await;
    assert_eq!(world.wrong().await, ["device pi-01: trust file and store"]);
    world.apply(&world.desired(&[])).await.unwrap();
    assert_eq!(
        world.standings().await,
        [("pi-01".into(), Standing::Active)]
    );

    let mut trust = TrustFile::read(&world.setup.trust_file()).unwrap();
    let at = now().into();
    trust.devices.get_mut(&id("pi-01")).unwrap().keys[0].state = KeyState::Revoked { at };
    trust.write(&world.setup.trust_file()).unwrap();
    assert_eq!(world.wrong().await, ["device pi-01: trust file and store"]);
    let plan = world.plan(&world.desired(&[])).await;
    assert!(plan.revokes.is_empty());
    world.apply(&world.desired(&[])).await.unwrap();
    assert_eq!(
        world.standings().await,
        [("pi-01".into(), Standing::Revoked)]
    );
}

#[tokio::test]
async fn destroy_takes_what_is_ours_and_nothing_else() {
    let world = World::with_authorities();
    let key = key();
    let desired = world.desired(&[("pi-01", &key)]);
    world.apply(&desired).await.unwrap();
    let foreign = [
        "notes.txt",
        "ca/other.pem",
        "gateway/other.toml",
        "devices/pi-01/owner-mine.pub.pem",
        "devices/not a device/agent.toml",
    ];
    for name in foreign {
        let path = world.setup.dir().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "mine").unwrap();
    }
    let before = tree(world.setup.dir());
    let plan = world.setup.plan_destroy(Destroy::default()).await.unwrap();
    assert_eq!(tree(world.setup.dir()), before);
    let steps = world.destroy(Destroy::default()).await;
    assert_eq!(shown(&steps), shown(&plan.steps));
    // the data and what reads it are there, and all can be made again
    let left = paths(world.setup.dir());
    for name in [
        "gateway/store.db",
        "trust.toml",
        "owner.pem",
        "ca/device-ca.key.pem",
    ] {
        assert!(left.contains(&PathBuf::from(name)), "{left:?}");
    }
    assert!(!left.contains(&PathBuf::from("gateway/gateway.key.pem")));
    world.apply(&desired).await.unwrap();
    assert_eq!(
        world.standings().await,
        [("pi-01".into(), Standing::Active)]
    );

    let all = Destroy {
        data: true,
        keys: true,
    };
    let steps = world.destroy(all).await;
    let mut kept: Vec<_> = steps
        .iter()
        .filter(|step| step.action == Action::Kept)
        .map(|step| (step.item.to_string(), step.reason.clone()))
        .collect();
    kept.sort();
    let mut left: Vec<_> = paths(world.setup.dir());
    left.sort();
    let mut expected: Vec<_> = foreign.iter().map(PathBuf::from).collect();
    expected.sort();
    assert_eq!(left, expected);
    assert_eq!(kept.len(), foreign.len(), "{kept:?}");
    assert!(kept.iter().all(|(_, why)| why == "not made by zk-setup"));
    for name in foreign {
        fs::remove_file(world.setup.dir().join(name)).unwrap();
    }
    fs::remove_dir(world.setup.dir().join("devices/not a device")).unwrap();
    // a second time there is nothing, and the directories can go
    world.destroy(all).await;
    world.destroy(all).await;
}

/// What lies behind a link in place of one of the directories is somebody's.
#[tokio::test]
async fn destroy_and_removal_do_not_go_through_links() {
    for name in ["gateway", "ca", "devices", "devices/pi-01"] {
        let world = World::with_authorities();
        let desired = world.desired(&[("pi-01", &key())]);
        world.apply(&desired).await.unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let moved = elsewhere.path().join("moved");
        let link = world.setup.dir().join(name);
        fs::rename(&link, &moved).unwrap();
        symlink(&moved, &link).unwrap();
        let all = Destroy {
            data: name != "gateway",
            keys: true,
        };
        let before = tree(&moved);
        if name.starts_with("devices") {
            let mut nothing = world.desired(&[]);
            nothing.others = Others::Remove;
            let plan = world.plan(&nothing).await;
            assert_eq!(plan.revokes, [id("pi-01")]);
            world.apply(&nothing).await.unwrap();
            assert_eq!(tree(&moved), before, "{name}");
        }
        let plan = world.setup.plan_destroy(all).await.unwrap();
        let steps = world.destroy(all).await;
        assert_eq!(shown(&plan.steps), shown(&steps));
        assert_eq!(tree(&moved), before, "{name}");
        let is_named = |step: &Step| step.item == Item::File(link.clone());
        let kept = steps.iter().find(|step| is_named(step)).unwrap();
        assert_eq!(kept.action, Action::Kept, "{name}");
    }
}

#[tokio::test]
async fn destroy_leaves_a_link_that_names_the_set_up() {
    let world = World::with_authorities();
    world.apply(&world.desired(&[])).await.unwrap();
    let link = world.setup.dir().with_file_name("link");
    symlink(world.setup.dir(), &link).unwrap();
    let all = Destroy {
        data: true,
        keys: true,
    };
    let setup = LocalSetup::new(&link);
    for _ in 0..2 {
        setup.destroy(all, &mut |_| {}).await.unwrap();
        assert!(link.is_symlink());
        assert!(paths(world.setup.dir()).is_empty());
    }
}

#[tokio::test]
async fn destroy_stopped_anywhere_goes_on() {
    let world = World::with_authorities();
    world
        .apply(&world.desired(&[("pi-01", &key())]))
        .await
        .unwrap();
    let all = Destroy {
        data: true,
        keys: true,
    };
    // one step further each time
    for _ in 0..40 {
        if !world.setup.dir().exists() {
            return;
        }
        let mut seen = 0;
        let mut tell = |step: &Step| {
            seen += usize::from(step.action == Action::Removed);
            assert!(seen < 1, "stopped, as it is to be");
        };
        let setup = world.setup.clone();
        let stopped = std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    runtime
                        .block_on(setup.destroy(all, &mut tell))
                        .map(|steps| steps.len())
                })
                .join()
        });
        if let Ok(done) = stopped {
            done.unwrap();
        }
    }
    panic!("left: {:?}", paths(world.setup.dir()));
}

#[tokio::test]
async fn a_store_of_somebody_else_is_not_removed() {
    let world = World::with_authorities();
    world.apply(&world.desired(&[])).await.unwrap();
    let file = world.setup.dir().join("gateway/store.db");
    fs::write(&file, "no database").unwrap();
    let all = Destroy {
        data: true,
        keys: true,
    };
    let steps = world.destroy(all).await;
    assert!(file.exists());
    assert!(
        steps
            .iter()
            .any(|step| step.item == Item::File(file.clone())
                && step.reason.starts_with("not a store")),
        "{steps:?}"
    );
}

#[tokio::test]
async fn check_finds_what_is_wrong_and_says_what_to_do() {
    let world = World::with_authorities();
    world
        .apply(&world.desired(&[("pi-01", &key())]))
        .await
        .unwrap();
    let path = |name: &str| world.setup.dir().join(name);
    // what is broken, how, and what the cure says
    type Break<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);
    let broken: &[Break<'_>] = &[
        (
            "gateway/gateway.key.pem",
            &|file| chmod(file, 0o644),
            "chmod go=",
        ),
        ("owner.pem", &|file| chmod(file, 0o640), "chmod go="),
        ("ca/device-ca.key.pem", &remove, "backup"),
        (
            "ca/gateway-ca.key.pem",
            &|file| fs::write(file, "-----BEGIN PRIVATE KEY-----\n").unwrap(),
            "backup",
        ),
        ("gateway/gateway.crt.pem", &remove, "zk-setup apply"),
        (
            "gateway/gateway.key.pem",
            &|file| fs::write(file, p256_pem()).unwrap(),
            "zk-setup apply",
        ),
        (
            "gateway/device-ca.crt.pem",
            &|file| {
                fs::copy(file.with_file_name("gateway.crt.pem"), file).unwrap();
            },
            "zk-setup apply",
        ),
        ("devices/pi-01/agent.toml", &remove, "zk-setup apply"),
        ("devices/pi-01/device.crt.pem", &remove, "zk-setup apply"),
        (
            "devices/pi-01/gateway-ca.crt.pem",
            &remove,
            "zk-setup apply",
        ),
        (
            "gateway/gateway.toml",
            &|file| fs::write(file, "listen = \"nowhere\"\n").unwrap(),
            "zk-setup apply",
        ),
        (
            "trust.toml",
            &|file| fs::write(file, "?").unwrap(),
            "zk-setup apply",
        ),
    ];
    for (name, break_it, cure) in broken {
        let file = path(name);
        let (bytes, mode) = (fs::read(&file).unwrap(), mode(&file));
        break_it(&file);
        let found = world.setup.check(now()).await;
        let bad: Vec<_> = found
            .iter()
            .filter_map(|one| match &one.verdict {
                Verdict::Bad { cure, .. } => Some((one.what.as_str(), cure.as_str())),
                _ => None,
            })
            .collect();
        assert!(
            bad.iter()
                .any(|(what, said)| what.ends_with(name) && said.contains(cure)),
            "{name}: {bad:?}"
        );
        fs::write(&file, bytes).unwrap();
        chmod(&file, mode);
        assert_eq!(world.wrong().await, [""; 0], "{name}");
    }
    // a certificate of one's own may be meant so
    let config = path("gateway/gateway.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("\"gateway.crt.pem\"", "'/etc/own.pem'"),
    )
    .unwrap();
    let found = world.setup.check(now()).await;
    let own = |one: &&zk_provision::Checked| match &one.verdict {
        Verdict::Warning { cause, .. } => cause.contains("/etc/own.pem"),
        _ => false,
    };
    assert_eq!(found.iter().filter(own).count(), 1, "{found:?}");
    fs::write(&config, text).unwrap();
    // in time it is a warning, later it is wrong
    let verdicts = async |later: SystemTime| {
        let found = world.setup.check(later).await;
        let one = found
            .into_iter()
            .find(|one| one.what.ends_with("gateway.crt.pem"));
        one.unwrap().verdict
    };
    assert!(matches!(verdicts(now() + years(1)).await, Verdict::Good));
    let due = verdicts(now() + years(2) * 3 / 4).await;
    assert!(matches!(due, Verdict::Warning { .. }), "{due:?}");
    let expired = verdicts(now() + years(3)).await;
    assert!(matches!(expired, Verdict::Bad { .. }), "{expired:?}");
}

/// An operator's directory.
struct World {
    setup: LocalSetup,
    _dir: TempDir,
}

impl World {
    fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let setup = LocalSetup::new(dir.path().join("zk"));
        Self { setup, _dir: dir }
    }

    fn with_authorities() -> Self {
        let (dir, setup) = authorities();
        Self { setup, _dir: dir }
    }

    fn desired(&self, devices: &[(&str, &SigningKey)]) -> Desired {
        let device = |(name, key): &(&str, &SigningKey)| {
            let device = DesiredDevice {
                key: DesiredKey::Request(request(name, key)),
                ..DesiredDevice::default()
            };
            (id(name), device)
        };
        Desired {
            names_at_first: names(&["localhost"]),
            devices: devices.iter().map(device).collect(),
            ..Desired::default()
        }
    }

    async fn plan(&self, desired: &Desired) -> Plan {
        self.setup.plan(desired, now()).await.unwrap()
    }

    async fn apply(&self, desired: &Desired) -> Result<Vec<Step>, Error> {
        let (of_authorities, of_owner) = (passphrase(), owner_passphrase());
        let secrets = Secrets {
            authorities: Some(&of_authorities),
            owner: Some(&of_owner),
        };
        let setup = &self.setup;
        setup.apply(desired, secrets, now(), &mut |_| {}).await
    }

    async fn destroy(&self, what: Destroy) -> Vec<Step> {
        self.setup.destroy(what, &mut |_| {}).await.unwrap()
    }

    async fn store(&self) -> Store {
        Store::open(&self.setup.store().unwrap(), Options::default())
            .await
            .unwrap()
    }

    async fn standings(&self) -> Vec<(String, Standing)> {
        let store = self.store().await;
        let devices = self.setup.devices(&store).await.unwrap();
        store.close().await;
        let standing =
            |entry: &zk_provision::DeviceEntry| (entry.device.to_string(), entry.standing);
        devices.iter().map(standing).collect()
    }

    /// What a check finds wrong.
    async fn wrong(&self) -> Vec<String> {
        let found = self.setup.check(now()).await;
        let wrong = found.into_iter().filter_map(|one| match one.verdict {
            Verdict::Bad { .. } => Some(one.what),
            _ => None,
        });
        wrong.collect()
    }
}

/// What is done to what, with names that only an apply knows left out.
fn shown(steps: &[Step]) -> Vec<String> {
    let show = |step: &Step| {
        let item = match &step.item {
            // a new record's principal is known when its certificate is made
            Item::Record(_) | Item::NewRecord(_) if step.action == Action::Created => {
                "a new record".to_owned()
            }
            Item::File(path) if path.to_str().unwrap().contains("/owner-") => {
                format!("{}/an owner", path.parent().unwrap().display())
            }
            item => item.to_string(),
        };
        format!("{} {item} {}", step.action, step.reason)
    };
    steps.iter().map(show).collect()
}

fn changes(plan: &Plan) -> Vec<(String, String)> {
    let change = |step: &Step| {
        let item = step.item.to_string();
        let item = item.split_once("/zk/").map_or(&*item, |(_, name)| name);
        (step.action == Action::Changed).then(|| (item.to_owned(), step.reason.clone()))
    };
    plan.steps.iter().filter_map(change).collect()
}

/// Every file below, with its mode and its bytes.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_owned();
                found.insert(name, (mode(&path), fs::read(&path).unwrap()));
            }
        }
    }
    found
}

/// The names, but that of an owner, which is another one each time.
fn paths(dir: &Path) -> Vec<PathBuf> {
    let name = |path: PathBuf| match path.file_name().unwrap().to_str().unwrap() {
        name if name.starts_with("owner-") && name.len() == 30 => path.with_file_name("owner-ID"),
        _ => path,
    };
    tree(dir).into_keys().map(name).collect()
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

fn chmod(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

fn remove(file: &Path) {
    fs::remove_file(file).unwrap();
}

fn p256_pem() -> String {
    use p256::pkcs8::EncodePrivateKey;
    let pem = key().to_pkcs8_pem(Default::default()).unwrap();
    pem.to_string()
}

fn owner_passphrase() -> Passphrase {
    Passphrase::new(OWNER.to_owned()).unwrap()
}

const OWNER: &str = "the owner's words";
