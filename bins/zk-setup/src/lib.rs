//! The operator's tool: devices, and what takes in their readings, in an AWS account
//! or on a gateway of one's own.
//!
//! The work is done by [`zk_provision`]; here are the command line, zk-setup.toml,
//! the questions, and what a person or a script reads of the result. The
//! program prints what [`run`] returns.
#![forbid(unsafe_code)]

mod arguments;
mod aws;
mod cost;
mod credentials;
mod desired;
mod file;
mod outcome;
mod passphrase;
mod question;
mod self_test;
mod target;

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use zk_provision::{
    Action, Checked, Destroy, Device, Gateway, LocalSetup, Others, Passphrase, Plan, Secrets, Step,
    Verdict,
};
use zk_store::Store;

use arguments::{
    Apply, CaCommand, Command, DesiredArguments, DeviceAdd, DeviceCommand, DeviceRotate,
    GatewayCommand, GatewayInit,
};
pub use arguments::{Arguments, Target};
pub use file::{AwsTable, DeviceTable, GatewayTable, SetupFile};
pub use outcome::Outcome;
use self_test::SelfTest;

/// Does what the command line says. `say` hears, line by line, of each step of a
/// long command when it is done.
///
/// # Errors
/// What happened, and with what; running the command again is safe.
pub fn run(arguments: &Arguments, say: &mut dyn FnMut(&str)) -> anyhow::Result<Outcome> {
    // what is done on this machine alone
    match &arguments.command {
        Command::Credentials(command) => return credentials::run(&arguments.dir, command),
        Command::Cost(given) => return cost::run(given),
        _ => {}
    }
    let setup = LocalSetup::new(&arguments.dir);
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let now = SystemTime::now();
    runtime.block_on(async {
        let chosen = target::of(&setup, arguments)?;
        if chosen.is_aws() && !matches!(arguments.command, Command::Template) {
            return aws::run(arguments, &chosen, now, begun, say).await;
        }
        match &arguments.command {
            Command::Plan(given) => {
                let (desired, _) = desired::desired(&setup, given)?;
                Ok(outcome::plan(&setup.plan(&desired, now).await?))
            }
            Command::Apply(given) => apply(&setup, given, now, say).await,
            Command::Status(given) => status(&setup, given, now).await,
            Command::Check(function) => {
                desired::without_function(function)?;
                check(&setup, now).await
            }
            Command::Destroy(given) => destroy(&setup, given, say).await,
            Command::Template => Ok(Outcome::template(file::TEMPLATE)),
            Command::Ca(CaCommand::Init(source)) => {
                let new = !setup.dir().join("ca/gateway-ca.key.pem").exists();
                let passphrase = passphrase::get(source, new)?;
                let steps = setup.init_authorities(&passphrase, now)?;
                let next = "gateway init --name HOST";
                Ok(outcome::authorities(&setup, &steps, next))
            }
            Command::Ca(CaCommand::Show) => {
                Ok(outcome::shown_authorities(&setup.authorities()?, None))
            }
            Command::Policy(_) => {
                bail!("a policy is for --target aws; this is a set-up with a gateway")
            }
            // these never come here
            Command::Credentials(_) | Command::Cost(_) => bail!("not a command of a set-up"),
            Command::Gateway(GatewayCommand::Init(init)) => init_gateway(&setup, init, now).await,
            Command::Device(command) => {
                let store = store(&setup).await?;
                let done = device(&setup, command, &store, now).await;
                store.close().await;
                done
            }
        }
    })
}

async fn apply(
    setup: &LocalSetup,
    given: &Apply,
    now: SystemTime,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    let (mut desired, here) = desired::desired(setup, &given.desired)?;
    let plan = setup.plan(&desired, now).await?;
    let mut steps = plan.steps.clone();
    if plan.has_changes() {
        if !given.yes {
            question::about(&plan, None)?;
        }
        // somebody may add a device while this one is being asked
        if desired.others == Others::Remove {
            desired.others = Others::RemoveThese(plan.revokes.clone());
        }
        let (authorities, owner) = passphrases(&plan, given)?;
        desired::make_keys(&mut desired.devices, say)?;
        let secrets = Secrets {
            authorities: authorities.as_ref(),
            owner: owner.as_ref(),
        };
        let mut tell = |step: &Step| say(&outcome::line(step));
        steps = setup.apply(&desired, secrets, now, &mut tell).await?;
    }
    let checked = setup.check(now).await;
    let applied = outcome::Applied {
        plan: &plan,
        devices: &desired.devices,
        here: &here,
        steps: &steps,
        found: &checked,
    };
    Ok(outcome::applied(setup, &applied, Some(&desired)))
}

/// The passphrases that a plan needs: whoever can't answer is better told before
/// anything is done.
fn passphrases(
    plan: &Plan,
    given: &Apply,
) -> anyhow::Result<(Option<Passphrase>, Option<Passphrase>)> {
    let authorities = plan.needs.authorities.map(|age| {
        let is_new = age == zk_provision::Age::New;
        passphrase::get(&given.passphrase, is_new)
    });
    let owner = plan.needs.owner.map(|age| {
        let is_new = age == zk_provision::Age::New;
        passphrase::of_owner(given.owner_passphrase_file.as_deref(), is_new)
    });
    Ok((authorities.transpose()?, owner.transpose()?))
}

async fn status(
    setup: &LocalSetup,
    given: &DesiredArguments,
    now: SystemTime,
) -> anyhow::Result<Outcome> {
    let (desired, _) = desired::desired(setup, given)?;
    let plan = setup.plan(&desired, now).await?;
    let mut devices = Vec::new();
    // what the plan is to make first can't be asked
    let is_there = |step: &Step| step.action == Action::Kept;
    if plan
        .steps
        .iter()
        .filter(|step| is_store(setup, step))
        .any(is_there)
    {
        let store = store(setup).await?;
        let found = setup.devices(&store).await;
        store.close().await;
        devices = found?;
    }
    let expiries = setup.expiries(now)?;
    Ok(outcome::status(&plan, &devices, &expiries))
}

/// Looks at everything; and where the gateway answers and a device's key is in
/// this machine, sees whether what the device publishes gets where it belongs.
async fn check(setup: &LocalSetup, now: SystemTime) -> anyhow::Result<Outcome> {
    let mut found = setup.check(now).await;
    let is_up = |one: &Checked| one.what.starts_with("gateway at") && one.verdict == Verdict::Good;
    if found.iter().any(is_up) {
        let store = store(setup).await?;
        for dir in setup.device_dirs()? {
            let test = SelfTest {
                dir: &dir,
                store: &store,
                settling: Duration::ZERO,
                clue: "look at the gateway's log; does it write to this store?",
            };
            found.extend(test.run().await);
        }
        store.close().await;
    }
    Ok(outcome::checked(&found))
}

fn is_store(setup: &LocalSetup, step: &Step) -> bool {
    use zk_provision::Item;
    use zk_store::StoreUri;
    match (&step.item, setup.store()) {
        (Item::File(path), Ok(StoreUri::File(store))) => *path == store,
        (Item::Tables(uri), Ok(store)) => *uri == store,
        _ => false,
    }
}

async fn destroy(
    setup: &LocalSetup,
    given: &arguments::Destroy,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    let what = Destroy {
        data: given.with_data,
        keys: given.with_keys,
    };
    let plan = setup.plan_destroy(what).await?;
    if !plan.has_changes() {
        return Ok(outcome::destroyed(setup, &plan.steps, None));
    }
    if !given.yes {
        question::about_destruction(setup, &plan, None)?;
    }
    let mut tell = |step: &Step| say(&outcome::line(step));
    let steps = setup.destroy(what, &mut tell).await?;
    Ok(outcome::destroyed(setup, &steps, None))
}

async fn init_gateway(
    setup: &LocalSetup,
    init: &GatewayInit,
    now: SystemTime,
) -> anyhow::Result<Outcome> {
    let gateway = Gateway {
        names: init.names.clone(),
        listen: init.listen,
        store: desired::absolute(init.store.clone())?,
    };
    let passphrase = passphrase::get(&init.passphrase, false)?;
    let files = setup.init_gateway(&gateway, &passphrase, now).await?;
    Ok(outcome::gateway(setup, &files))
}

async fn device(
    setup: &LocalSetup,
    command: &DeviceCommand,
    store: &Store,
    now: SystemTime,
) -> anyhow::Result<Outcome> {
    match command {
        DeviceCommand::Add(add) => add_device(setup, add, store, now).await,
        DeviceCommand::List => Ok(outcome::devices(&setup.devices(store).await?)),
        DeviceCommand::Rotate(rotate) => rotate_device(setup, rotate, store, now).await,
        DeviceCommand::Revoke { name } => {
            let revoked = setup.revoke_device(name, store, now).await?;
            let soon = "A running gateway refuses it within a minute.";
            Ok(outcome::revoked(setup, &revoked, soon))
        }
    }
}

async fn add_device(
    setup: &LocalSetup,
    add: &DeviceAdd,
    store: &Store,
    now: SystemTime,
) -> anyhow::Result<Outcome> {
    let device = wanted_device(add)?;
    let passphrase = passphrase::get(&add.passphrase, false)?;
    let added = setup.add_device(&device, &passphrase, store, now).await?;
    Ok(outcome::added(setup, &added))
}

fn wanted_device(add: &DeviceAdd) -> anyhow::Result<Device> {
    Ok(Device {
        owners: desired::owner_keys(&add.owners)?,
        request: desired::request(&add.name, add.csr.as_deref(), add.hsm.as_ref())?,
        hsm: add.hsm.as_ref().map(ToString::to_string),
        endpoint: add.endpoint.clone(),
    })
}

async fn rotate_device(
    setup: &LocalSetup,
    rotate: &DeviceRotate,
    store: &Store,
    now: SystemTime,
) -> anyhow::Result<Outcome> {
    if rotate.finish {
        let finished = setup.finish_rotation(&rotate.name, store, now).await?;
        return Ok(outcome::rotated(setup, &finished));
    }
    if rotate.hsm.is_none() && rotate.csr.is_none() {
        bail!("--csr or --hsm is needed");
    }
    let request = desired::request(&rotate.name, rotate.csr.as_deref(), rotate.hsm.as_ref())?;
    let hsm = rotate.hsm.as_ref().map(ToString::to_string);
    let passphrase = passphrase::get(&rotate.passphrase, false)?;
    let next = setup
        .rotate_device(&request, hsm.as_deref(), &passphrase, store, now)
        .await?;
    Ok(outcome::rotating(setup, &next))
}

async fn store(setup: &LocalSetup) -> anyhow::Result<Store> {
    let uri = setup.store()?;
    Store::open(&uri, setup.store_options()?)
        .await
        .with_context(|| format!("store {uri}"))
}
