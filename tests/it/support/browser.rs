//! A real Chromium without a window, and its driver.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use url::{ParseError, Url};

use super::account::find;
use super::processes::kill_families;
use super::{eventually, runtime};

pub struct Browser {
    runtime: Runtime,
    client: Client,
    _driver: Driver,
}

/// The driver, with the browser that it starts and all of that one's processes.
struct Driver {
    port: String,
    child: Child,
    _dir: TempDir,
}

/// What only Chromium's driver knows.
#[derive(Debug)]
struct Own {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Own {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (hyper::Method, Option<String>) {
        (hyper::Method::POST, Some(self.body.to_string()))
    }
}

impl Browser {
    pub fn start() -> Self {
        Self::with(&json!({}))
    }

    /// One whose user has switched scripts off.
    pub fn without_script() -> Self {
        Self::with(&json!({ "profile.managed_default_content_settings.javascript": 2 }))
    }

    fn with(preferences: &Value) -> Self {
        let driver = Driver::start();
        let arguments = [
            "--headless",
            // Root has no other choice, and a container has little shared memory.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            // Over pipes, so that it ends with the driver.
            "--remote-debugging-pipe",
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "binary": find("chromium"), "args": arguments, "prefs": preferences },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let runtime = runtime();
        let mut session = ClientBuilder::new(HttpConnector::new());
        session.capabilities(capabilities.as_object().unwrap().clone());
        let client = runtime.block_on(session.connect(&format!("http://127.0.0.1:{}", driver.port)));
        Self { runtime, client: client.expect("Chromium did not start"), _driver: driver }
    }

    pub fn open(&self, url: &str) {
        self.runtime.block_on(self.client.goto(url)).unwrap();
    }

    /// Runs a script in the page, and returns what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.runtime.block_on(self.client.execute(script, Vec::new())).unwrap()
    }

    /// The page as it is now.
    pub fn source(&self) -> String {
        self.runtime.block_on(self.client.source()).unwrap()
    }

    /// Waits until a script returns something that is so.
    pub fn wait(&self, script: &str) {
        eventually(script, || (self.run(script) == true).then_some(()));
    }

    /// A command of the Chrome DevTools Protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.own("goog/cdp/execute", json!({ "cmd": command, "params": parameters }))
    }

    /// What has gone to the console since the last time, also what the browser itself complains of.
    pub fn console(&self) -> Vec<String> {
        let entries = self.own("se/log", json!({ "type": "browser" }));
        entries.as_array().unwrap().iter().map(ToString::to_string).collect()
    }

    /// A screen of this size, as a phone or a desk has it.
    pub fn resize(&self, width: u32, height: u32) {
        let screen =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", &screen);
    }

    /// `prefers-color-scheme`.
    pub fn prefer(&self, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
    }

    fn own(&self, path: &'static str, body: Value) -> Value {
        self.runtime.block_on(self.client.issue_cmd(Own { path, body })).unwrap()
    }
}

impl Driver {
    fn start() -> Self {
        let dir = TempDir::with_prefix("browser-").unwrap();
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(find("chromedriver"))
            .arg("--port=0")
            // Whatever it and Chromium leave lying about goes with the directory.
            .envs(["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"].map(|name| (name, dir.path())))
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut driver = Self { port: String::new(), child, _dir: dir };
        let port = said.find_map(|line| Some(line.split_once("successfully on port ")?.1.to_owned()));
        driver.port = port.expect("the driver did not start").trim_end_matches('.').to_owned();
        // Whatever else it says somebody has to take.
        std::thread::spawn(move || said.for_each(drop));
        driver
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        kill_families(vec![self.child.id()]);
        let _ = self.child.wait();
    }
}
