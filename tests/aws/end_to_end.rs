//! The whole way through AWS as a user goes it, on MiniStack: zk-setup, run by an
//! operator who may do no more than it prints; the Lambda function's zip that is
//! uploaded; messages by a foreign MQTT client with the device's certificate, and by
//! our own publisher over HTTPS; zk-reader at the end.
//!
//! `cargo xtask test aws` installs the stand-ins and builds zip and programs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod stand_in;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_iam::config::Credentials;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use zk_envelope::{
    BootId, ClockQuality, Content, DeviceEvent, DeviceId, Envelope, Message, Moment,
    OwnerPublicKey, Report, Sealer, StreamId, Timestamp, pack,
};
use zk_hsm::{Hsm, HsmUri};
use zk_provision::{Gateway, LocalSetup, Passphrase};
use zk_store::{Options, Quarantined, Store, StoredReading};
use zk_tests::peers::{NEITHER, Nginx};
use zk_verify::topic_of;

use stand_in::{REGION, StandIn, Way, environment, root};

#[tokio::test(flavor = "multi_thread")]
async fn from_an_empty_account_to_the_owner_and_back() {
    let world = World::new();

    // nothing is there, and a plan makes nothing
    let device = ["--device", "pi-01", "--hsm", &world.key("k1")];
    let planned = world.setup(3, &[&["plan"][..], &device].concat());
    assert_eq!(planned["hasChanges"], true);
    assert_eq!(world.inventory(), json!([]));

    // The endpoint that MiniStack names speaks no TLS: that is found, and all else
    // is well.
    let made = world.setup(3, &[&["apply", "--yes"][..], &device].concat());
    assert_eq!(made["hasChanged"], true);
    let wrong = wrong(&made);
    assert!(
        wrong.len() == 1 && wrong[0].starts_with("self-test of pi-01: publishing to"),
        "{wrong:?}"
    );
    println!("plan: {} calls, {} s", planned["calls"], planned["seconds"]);
    println!("apply: {} calls, {} s", made["calls"], made["seconds"]);
    let all = world.inventory();
    assert_eq!(all.as_array().unwrap().len(), 13, "{all:#}");
    let again = world.setup(0, &["plan"]);
    println!("plan: {} calls, {} s", again["calls"], again["seconds"]);

    world.over_mqtt().await;
    let nginx = world.over_https().await;
    world.drift();
    drop(nginx);
    assert!(world.store().remove_device(&world.account).await.unwrap());
    world.rotation().await;

    // and away: the data and the keys only when told
    world.setup(0, &["destroy", "--yes"]);
    let tables = ["zk-devices", "zk-quarantine", "zk-readings"];
    let left: Vec<_> = tables.iter().map(|name| format!("table {name}")).collect();
    assert_eq!(world.inventory(), json!(left));
    let (listed, _) = world.reader(0, &["list", "--json"]);
    assert!(listed.lines().count() > 5, "{listed}");
    world.setup(0, &["destroy", "--with-data", "--with-keys", "--yes"]);
    assert_eq!(world.inventory(), json!([]));
    assert!(!world.path("zk").exists());
}

impl World {
    /// Rule, principal and function, seen together: by a foreign client.
    async fn over_mqtt(&self) {
        let sender = Sender::new(self, "k1", "zk/devices/pi-01");
        let messages = [
            message(&[&sender.started()]),
            message(&[&sender.reading(2)]),
            message(&[&sender.reading(3), &sender.reading(4), &sender.reading(5)]),
        ];
        let forged = Envelope::from_parts(sender.reading(6).encrypted_data().to_vec(), [7; 64]);
        let forged = message(&[&forged.unwrap()]);
        let stranger = message(&[&sender.sealed_as("pi-02", 7)]);
        let sent = [
            &messages[0],
            &messages[1],
            &messages[2],
            &forged,
            &stranger,
            // once more, as MQTT may
            &messages[1],
        ];
        assert_eq!(sender.publish("pi-01", &sent), ["taken"; 6]);
        let readings = self
            .until("five readings and a duplicate", async || {
                let readings = self.readings().await;
                let again: u64 = readings.iter().map(|reading| reading.again).sum();
                (readings.len() == 5 && again == 1).then_some(readings)
            })
            .await;
        let principal = self.principal("pi-01");
        assert!(readings.iter().all(|found| found.principal == principal));
        let held = self
            .until("both in quarantine", async || {
                let held = self.quarantine().await;
                (held.len() == 2).then_some(held)
            })
            .await;
        let mut reasons: Vec<_> = held.iter().map(|held| held.reason.as_str()).collect();
        reasons.sort_unstable();
        assert_eq!(reasons, ["bad-signature", "principal-mismatch"]);
        assert!(held.iter().all(|held| held.context.principal == principal));

        // its policy keeps it to its topic, and to its name
        let other = sender.publish("pi-02", &[&messages[1]]);
        assert!(other[0].starts_with("disconnected"), "{other:?}");
        let impostor = Sender {
            client: "pi-02",
            ..Sender::new(self, "k1", "zk/devices/pi-01")
        };
        let refused = impostor.publish("pi-01", &[&messages[1]]);
        assert!(!refused.contains(&"taken".to_owned()), "{refused:?}");

        // what the owner sees of it
        let (listed, _) = self.reader(0, &["list", "--json"]);
        assert_eq!(listed.lines().count(), 5, "{listed}");
        assert!(listed.contains("21.437"), "{listed}");
        let (audit, _) = self.reader(0, &["audit"]);
        assert!(audit.contains("pi-01: complete up to 5"), "{audit}");
        assert!(audit.contains("1 delivery again"), "{audit}");
        let (held, _) = self.reader(0, &["quarantine", "list"]);
        for reason in ["bad-signature", "principal-mismatch"] {
            assert!(held.contains(reason), "{held}");
        }
    }

    /// nginx asks for the certificate, which MiniStack does for MQTT alone, and hands
    /// on what it lets in with a key of its own: so MiniStack takes the account for
    /// who sends, which has to be registered.
    async fn over_https(&self) -> Nginx {
        let server = LocalSetup::new(self.path("server"));
        let passphrase = Passphrase::new("for tests only".to_owned()).unwrap();
        let now = SystemTime::now();
        server.init_authorities(&passphrase, now).unwrap();
        let gateway = Gateway {
            names: vec!["localhost".try_into().unwrap()],
            listen: None,
            store: None,
        };
        server
            .init_gateway(&gateway, &passphrase, now)
            .await
            .unwrap();
        let pass = format!(
            "proxy_pass {}; proxy_set_header Host data-ats.iot.{REGION}.localhost; \
             proxy_set_header Authorization 'AWS4-HMAC-SHA256 Credential=test/20261126/{REGION}/\
             iotdata/aws4_request, SignedHeaders=host, Signature=0';",
            self.server.url()
        );
        let nginx = Nginx::in_front(
            &self.path("server/gateway/gateway.crt.pem"),
            &self.path("server/gateway/gateway.key.pem"),
            &self.path("zk/ca/device-ca.crt.pem"),
            &pass,
        );
        let port = nginx.port(("TLSv1.3", NEITHER));
        let toml = format!(
            "[aws]\nroots = \"server/ca/gateway-ca.crt.pem\"\n\
             [devices.pi-01]\nhsm = \"{}\"\nendpoint = \"localhost:{port}\"\n",
            self.key("k1")
        );
        fs::write(self.path("zk-setup.toml"), toml).unwrap();
        let store = self.store();
        let record = store.device(&self.principal("pi-01")).await.unwrap();
        let record = record.unwrap();
        assert!(store.register(&self.account, &record).await.unwrap());

        // apply ends with the self-test, and check is it alone
        let file = ["--file", "zk-setup.toml"];
        let applied = self.setup(0, &[&["apply", "--yes"][..], &file].concat());
        assert_eq!(applied["hasChanged"], true);
        let checked = self.setup(0, &["check"]);
        let items: Vec<_> = checked["checks"].as_array().unwrap().iter().collect();
        for stage in [
            "publishing to localhost:",
            "the good message is among the readings",
            "the forged message is in quarantine, as bad-signature",
        ] {
            let is_it = |one: &&Value| {
                let item = one["item"].as_str().unwrap();
                item.starts_with("self-test of pi-01: ") && item.contains(stage)
            };
            let found = items.iter().copied().find(is_it);
            assert_eq!(
                found.map(|one| &one["state"]),
                Some(&json!("ok")),
                "{stage}"
            );
        }
        // each of the two has sent two records that are good, and one that is not, which
        // was taken out again
        let readings = self.readings().await;
        assert_eq!(readings.len(), 5 + 4);
        let by_https = readings.iter().filter(|one| one.principal == self.account);
        assert_eq!(by_https.count(), 4);
        assert_eq!(self.quarantine().await.len(), 2);
        self.reader(0, &["audit"]);

        nginx
    }

    /// What others have changed is shown, and mended; then there is nothing to do.
    fn drift(&self) {
        let all = self.inventory();
        self.server.boto3(DRIFT);
        let file = ["--file", "zk-setup.toml"];
        let status = self.setup(3, &[&["status"][..], &file].concat());
        let said: BTreeMap<_, _> = status["changes"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|change| change["action"] != "keep")
            .map(|change| {
                let text = |name: &str| change[name].as_str().unwrap_or_default().to_owned();
                (text("item"), text("reason"))
            })
            .collect();
        for (item, reason) in [
            ("CloudWatch log group /aws/lambda/zk-verifier", "retention"),
            ("DynamoDB table zk-quarantine", "items never expire"),
            (
                "IoT certificate ",
                "it is INACTIVE, its policy is not attached",
            ),
            ("IoT policy zk-pi-01", "allows something else"),
            ("IoT topic rule zk_verify", "its SQL is not ours"),
            ("Lambda function zk-verifier", "its environment"),
        ] {
            let found = said.iter().find(|(name, _)| name.starts_with(item));
            assert!(
                found.is_some_and(|(_, why)| why.contains(reason)),
                "{item}: {said:#?}"
            );
        }
        self.setup(0, &[&["apply", "--yes"][..], &file].concat());
        self.setup(0, &[&["plan"][..], &file].concat());
        let again = self.setup(0, &[&["apply"][..], &file].concat());
        assert_eq!(again["hasChanged"], false, "{again}");
        assert_eq!(self.inventory(), all);
    }

    /// A new key gets in, the old one then no more; and after all neither.
    async fn rotation(&self) {
        let count = self.readings().await.len();
        let rotate = ["device", "rotate", "pi-01", "--hsm", &self.key("k2")];
        self.setup(0, &rotate);
        let old = Sender::new(self, "k1", "zk/devices/pi-01");
        let new = Sender::new(self, "k2", "zk/devices/pi-01/next");
        for sender in [&old, &new] {
            assert_eq!(
                sender.publish("pi-01", &[&message(&[&sender.started()])]),
                ["taken"]
            );
        }
        self.until("one of each key", async || {
            (self.readings().await.len() == count + 2).then_some(())
        })
        .await;
        // the new one's files are the device's own after this
        let kept = self.path("old");
        fs::create_dir(&kept).unwrap();
        let certificate = "zk/devices/pi-01/device.crt.pem";
        fs::copy(self.path(certificate), kept.join("device.crt.pem")).unwrap();
        self.setup(0, &["device", "rotate", "pi-01", "--finish"]);
        let old = Sender::new(self, "k1", "old");
        let refused = old.publish("pi-01", &[&message(&[&old.started()])]);
        assert!(!refused.contains(&"taken".to_owned()), "{refused:?}");
        let new = Sender::new(self, "k2", "zk/devices/pi-01");
        assert_eq!(
            new.publish("pi-01", &[&message(&[&new.started()])]),
            ["taken"]
        );
        self.until("the new key's", async || {
            (self.readings().await.len() == count + 3).then_some(())
        })
        .await;

        self.setup(0, &["device", "revoke", "pi-01"]);
        let refused = new.publish("pi-01", &[&message(&[&new.started()])]);
        assert!(!refused.contains(&"taken".to_owned()), "{refused:?}");
        self.setup(0, &["plan"]);
        // what it has signed before that stays right
        let (listed, _) = self.reader(0, &["list", "--json"]);
        assert_eq!(listed.lines().count(), count + 3, "{listed}");
    }
}

/// As somebody would who has lost their way in the console.
const DRIFT: &str = "
i = client('iot')
arn = i.list_certificates()['certificates'][0]['certificateArn']
i.update_certificate(certificateId=arn.split('/')[-1], newStatus='INACTIVE')
i.detach_policy(policyName='zk-pi-01', target=arn)
i.create_policy_version(policyName='zk-pi-01', setAsDefault=True, policyDocument=json.dumps(
    {'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Action': '*', 'Resource': '*'}]}))
rule = i.get_topic_rule(ruleName='zk_verify')['rule']
payload = {name: rule[name] for name in ('actions', 'awsIotSqlVersion', 'errorAction')}
i.replace_topic_rule(ruleName='zk_verify', topicRulePayload=dict(payload, sql=\"SELECT * FROM 'Zymkey/+'\"))
client('lambda').update_function_configuration(FunctionName='zk-verifier',
    Environment={'Variables': {'ZK_PREFIX': 'other'}})
client('dynamodb').update_time_to_live(TableName='zk-quarantine',
    TimeToLiveSpecification={'Enabled': False, 'AttributeName': 'expiresAt'})
client('logs').put_retention_policy(logGroupName='/aws/lambda/zk-verifier', retentionInDays=7)
";

/// Everything there is, by foreign eyes, but for the operator.
const INVENTORY: &str = "
i = client('iot')
found = ['CA ' + one['status'] for one in i.list_ca_certificates()['certificates']]
found += ['certificate ' + one['status'] for one in i.list_certificates()['certificates']]
found += ['thing ' + one['thingName'] for one in i.list_things()['things']]
found += ['policy ' + one['policyName'] for one in i.list_policies()['policies']]
found += ['rule ' + one['ruleName'] for one in i.list_topic_rules()['rules']]
found += ['table ' + name for name in client('dynamodb').list_tables()['TableNames']]
found += ['function ' + one['FunctionName'] for one in client('lambda').list_functions()['Functions']]
found += ['role ' + one['RoleName'] for one in client('iam').list_roles()['Roles']]
found += ['queue ' + url.split('/')[-1] for url in client('sqs').list_queues().get('QueueUrls', [])]
found += ['logs ' + one['logGroupName'] for one in client('logs').describe_log_groups()['logGroups']]
print(json.dumps(sorted(found)))
";

/// An account with an operator, and that one's machine.
struct World {
    server: StandIn,
    account: String,
    operator: Credentials,
    dir: TempDir,
    zip: PathBuf,
}

impl World {
    fn new() -> Self {
        let zip = std::env::var_os("ZK_TEST_LAMBDA_ZIP");
        let zip = zip.expect("ZK_TEST_LAMBDA_ZIP is not set; run: cargo xtask test aws");
        let server = StandIn::ministack();
        let mut policy = Command::new(program("zk-setup"));
        let account = server.account();
        policy.env_clear().args(["policy", "--region", REGION]);
        let (policy, _) = ended(policy.args(["--account", &account]), 0);
        Self {
            operator: server.operator("operator", &policy),
            account,
            dir: tempfile::tempdir().unwrap(),
            server,
            zip: zip.into(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn key(&self, name: &str) -> String {
        format!("soft:{}", self.path(name).display())
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command
            .env_clear()
            .env("AWS_ENDPOINT_URL", self.server.url())
            .env("AWS_ACCESS_KEY_ID", self.operator.access_key_id())
            .env("AWS_SECRET_ACCESS_KEY", self.operator.secret_access_key())
            .env("AWS_REGION", REGION)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CONFIG_FILE", "none")
            .env("AWS_SHARED_CREDENTIALS_FILE", "none")
            .env("ZK_SETUP_PASSPHRASE", "the operator's words")
            .env("ZK_OWNER_PASSPHRASE", "the owner's words")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// zk-setup, whose answer is JSON.
    fn setup(&self, code: i32, arguments: &[&str]) -> Value {
        let mut command = self.command("zk-setup");
        command.args(arguments).arg("--json");
        if ["plan", "apply", "status", "check"].contains(&arguments[0]) {
            command.arg("--lambda-zip").arg(&self.zip);
        }
        let (out, _) = ended(&mut command, code);
        serde_json::from_str(&out).unwrap()
    }

    /// zk-reader with what zk-setup has written for it: what it says, and its
    /// complaints.
    fn reader(&self, code: i32, arguments: &[&str]) -> (String, String) {
        let mut command = self.command("zk-reader");
        command.args(["--config", "zk/reader.toml"]).args(arguments);
        ended(&mut command, code)
    }

    fn inventory(&self) -> Value {
        serde_json::from_str(&self.server.boto3(INVENTORY)).unwrap()
    }

    fn store(&self) -> Store {
        let config = self.server.config(&root(), &Way::new(), true);
        let client = aws_sdk_dynamodb::Client::new(&config);
        Store::with_client(client, Options::default()).unwrap()
    }

    async fn readings(&self) -> Vec<StoredReading> {
        let all = Timestamp::from_millis(0).unwrap()..=Timestamp::MAX;
        let mut readings = self.store().readings(&"pi-01".parse().unwrap(), all);
        let mut found = Vec::new();
        while let Some(reading) = readings.next().await {
            found.push(reading.unwrap());
        }
        found
    }

    async fn quarantine(&self) -> Vec<Quarantined> {
        let mut listing = self.store().quarantine();
        let mut found = Vec::new();
        while let Some(held) = listing.next().await {
            found.push(held.unwrap());
        }
        found
    }

    /// The id of a device's certificate.
    fn principal(&self, device: &str) -> String {
        let path = self.path(&format!("zk/devices/{device}/device.crt.pem"));
        let listed = self.server.boto3(&format!(
            "i = client('iot')\n\
             pem = open({:?}).read().split('-----END')[0]\n\
             for one in i.list_certificates()['certificates']:\n    \
             found = i.describe_certificate(certificateId=one['certificateId'])\n    \
             if found['certificateDescription']['certificatePem'].startswith(pem):\n        \
             print(one['certificateId'])",
            path.display().to_string()
        ));
        assert_eq!(listed.trim().len(), 64, "{listed}");
        listed.trim().to_owned()
    }

    /// Looks until there is what it looks for.
    async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = look().await {
                return found;
            }
            if started.elapsed() > Duration::from_secs(60) {
                let readings = self.readings().await;
                let held = self.quarantine().await;
                let log = self.server.boto3(LOG);
                panic!("not {what}: {readings:?}, {held:?}, {log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What the function has logged.
const LOG: &str = "
l = client('logs')
group = '/aws/lambda/zk-verifier'
for stream in l.describe_log_streams(logGroupName=group)['logStreams']:
    name = stream['logStreamName']
    for event in l.get_log_events(logGroupName=group, logStreamName=name)['events']:
        print(event['message'])
";

/// A device: its key, and the certificate it has for it.
struct Sender<'a> {
    world: &'a World,
    key: HsmUri,
    dir: PathBuf,
    client: &'a str,
    stream: StreamId,
    hsm: Hsm,
}

impl<'a> Sender<'a> {
    fn new(world: &'a World, key: &str, dir: &str) -> Self {
        let key: HsmUri = world.key(key).parse().unwrap();
        let hsm = Hsm::open(&key, zk_hsm::Options::default()).unwrap();
        let mut stream = StreamId([0; 16]);
        stream.0.copy_from_slice(&hsm.random(16).unwrap());
        Self {
            world,
            key,
            dir: world.path(dir),
            client: "pi-01",
            stream,
            hsm,
        }
    }

    /// The first record of its stream.
    fn started(&self) -> Envelope {
        let event = Report::DeviceEvent(DeviceEvent::StreamStarted { previous: None });
        self.seal("pi-01", 1, Content::Report(&event))
    }

    fn reading(&self, sequence: u64) -> Envelope {
        self.sealed_as("pi-01", sequence)
    }

    fn sealed_as(&self, device: &str, sequence: u64) -> Envelope {
        let content = Content::Data {
            content_type: "text/plain",
            body: b"21.437",
        };
        self.seal(device, sequence, content)
    }

    fn seal(&self, device: &str, sequence: u64, content: Content<'_>) -> Envelope {
        let device: DeviceId = device.parse().unwrap();
        let owner = fs::read_to_string(self.world.path("zk/owner.pub.pem")).unwrap();
        let owner = [OwnerPublicKey::from_pem(&owner).unwrap()];
        let moment = Moment {
            boot: BootId([1; 16]),
            since_boot_ms: sequence,
            time: Timestamp::from(SystemTime::now()),
            clock: ClockQuality::Synchronised,
        };
        let sealer = Sealer::new(device, self.stream, self.hsm.public_key(), &owner);
        let mut sealer = sealer.unwrap();
        sealer.seal(&self.hsm, &moment, sequence, content).unwrap()
    }

    /// Publishes on the topic of that device, with paho-mqtt: what became of each.
    fn publish(&self, device: &str, messages: &[&Vec<u8>]) -> Vec<String> {
        let roots = self.world.path("ministack.pem");
        self.world.server.boto3(&format!(
            "import urllib.request\n\
             pem = urllib.request.urlopen('{}/_ministack/iot/ca.pem').read()\n\
             open({:?}, 'wb').write(pem)",
            self.world.server.url(),
            roots.display().to_string()
        ));
        let key = self.key.to_string();
        let place = json!({
            "port": self.world.server.mqtt(),
            "roots": roots,
            "certificate": self.dir.join("device.crt.pem"),
            "key": key.strip_prefix("soft:").unwrap(),
            "client": self.client,
            "topic": topic_of(&device.parse().unwrap()),
        });
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/aws/publish.py");
        let mut child = Command::new(environment().join("bin/python"))
            .args([script, &place.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        for message in messages {
            // it may have given up already
            let _ = writeln!(input, "{}", STANDARD.encode(message));
        }
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "publish.py: {}", output.status);
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().map(str::to_owned).collect()
    }
}

fn message(envelopes: &[&Envelope]) -> Vec<u8> {
    if let [one] = envelopes {
        // `pack` refuses what is forged
        let device = one.unverified_header().device.to_string();
        let message = Message {
            device_id: device,
            entries: vec![(*one).into()],
        };
        return message.to_json().unwrap();
    }
    let records: Vec<_> = envelopes.iter().map(|one| one.to_bytes()).collect();
    pack(&records, usize::MAX).unwrap().0
}

/// What is wrong, by the checks at the end of an apply.
fn wrong(applied: &Value) -> Vec<&str> {
    let checks = applied["checks"].as_array().unwrap();
    let wrong = checks.iter().filter(|one| one["state"] == "wrong");
    wrong.map(|one| one["item"].as_str().unwrap()).collect()
}

/// A program as it was built.
fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    // target/debug/deps/aws_end_to_end-HASH
    let built = this.parent().unwrap().with_file_name(name);
    assert!(
        built.exists(),
        "{} is missing; run: cargo xtask test aws",
        built.display()
    );
    built
}

fn ended(command: &mut Command, code: i32) -> (String, String) {
    let output = command.output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let said = format!("{command:?}: {out}\n{err}");
    assert_eq!(output.status.code(), Some(code), "{said}");
    (out, err)
}
