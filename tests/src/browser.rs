//! A headless Chromium, led by chromedriver over the `WebDriver` protocol.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::{Api, PATIENCE, awaited, stopped};

/// A browser with one empty profile.
#[derive(Debug)]
pub struct Browser {
    pub page: Client,
    /// For what only Chromium has.
    extras: Api,
    driver: Child,
    _stdout: BufReader<ChildStdout>,
    profile: TempDir,
}

impl Browser {
    /// Starts a browser whose window has this size in CSS pixels.
    pub async fn start(width: u32, height: u32) -> Self {
        let profile = tempfile::Builder::new().prefix("sextant-browser-").tempdir().unwrap();
        let mut driver = Command::new(chromedriver())
            .arg("--port=0")
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts");
        let mut stdout = BufReader::new(driver.stdout.take().unwrap());
        let port = timeout(PATIENCE, port(&mut stdout)).await.expect("chromedriver is ready");
        let url = format!("http://127.0.0.1:{port}");
        let page = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities(profile.path(), width, height))
            .connect(&url)
            .await
            .expect("Chromium starts");
        let session = page.session_id().await.unwrap().unwrap();
        let extras = Api::new(&format!("{url}/session/{session}"));
        let browser = Self { page, extras, driver, _stdout: stdout, profile };
        // The window cannot be as narrow as a phone, what the page sees can.
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        browser.devtools("Emulation.setDeviceMetricsOverride", &metrics).await;
        browser
    }

    /// A command of the Chrome `DevTools` protocol.
    pub async fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.extras.post("/goog/cdp/execute", &body).await.ok()["value"].take()
    }

    /// Lets the page see a preference, as in `prefers-color-scheme`.
    pub async fn prefer(&self, feature: &str, value: &str) {
        let features = json!({"features": [{"name": feature, "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", &features).await;
    }

    /// What the page and the browser have complained about since the last call.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.extras.post("/se/log", &json!({"type": "browser"})).await.ok();
        let entries = log["value"].as_array().expect("entries").iter();
        entries.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The value of a JavaScript expression in the page.
    pub async fn value(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        let value = self.page.execute(&script, Vec::new()).await;
        value.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    /// Waits until an expression in the page is true.
    pub async fn until(&self, expression: &str) {
        let script = format!("return ({expression});");
        let asked = awaited(async || {
            let value = self.page.execute(&script, Vec::new()).await.ok()?;
            (value == Value::Bool(true)).then_some(())
        });
        if asked.await.is_none() {
            let text = self.value("document.body.innerText").await;
            panic!("{expression}: not within {} s; the page says\n{text}", PATIENCE.as_secs());
        }
    }

    /// Sends keys to an element, as a person types them.
    pub async fn keys(&self, selector: &str, keys: &str) {
        let element = self.page.find(Locator::Css(selector)).await.expect(selector);
        element.send_keys(keys).await.expect(selector);
    }

    pub async fn click(&self, selector: &str) {
        let element = self.page.find(Locator::Css(selector)).await.expect(selector);
        element.click().await.expect(selector);
    }

    /// Ends the browser in good order.
    pub async fn close(self) {
        let _ = self.page.clone().close().await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let driver = self.driver.id();
        let _ = self.driver.start_kill();
        driver.into_iter().for_each(stopped);
        // A driver that is killed leaves its browser behind. Only ours names our profile.
        for pid in processes_naming(self.profile.path()) {
            // SAFETY: no memory is involved.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

fn processes_naming(folder: &Path) -> Vec<libc::pid_t> {
    let name = folder.as_os_str().as_encoded_bytes();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
        arguments.windows(name.len()).any(|part| part == name).then_some(pid)
    })
    .collect()
}

fn chromedriver() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/bin")])
        .map(|folder| folder.join("chromedriver"))
        .find(|file| file.is_file())
        .expect("chromedriver is missing: sudo apt-get install chromium chromium-driver")
}

/// The port that chromedriver says it has chosen.
async fn port(stdout: &mut BufReader<ChildStdout>) -> u16 {
    let mut line = String::new();
    loop {
        line.clear();
        let read = stdout.read_line(&mut line).await.expect("chromedriver speaks");
        assert!(read > 0, "chromedriver ended before it was ready");
        let told = line.trim().strip_prefix("ChromeDriver was started successfully on port ");
        if let Some(port) = told.and_then(|rest| rest.trim_end_matches('.').parse().ok()) {
            return port;
        }
    }
}

fn capabilities(profile: &Path, width: u32, height: u32) -> Map<String, Value> {
    let arguments = [
        "--headless".to_owned(),
        "--no-sandbox".to_owned(),
        "--disable-gpu".to_owned(),
        "--disable-quic".to_owned(),
        "--disable-dev-shm-usage".to_owned(),
        "--no-first-run".to_owned(),
        "--disable-background-networking".to_owned(),
        "--disable-component-update".to_owned(),
        "--disable-sync".to_owned(),
        "--no-proxy-server".to_owned(),
        // Whatever tries to reach another machine fails and is complained about.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1".to_owned(),
        "--hide-scrollbars".to_owned(),
        "--force-device-scale-factor=1".to_owned(),
        format!("--window-size={width},{height}"),
        format!("--user-data-dir={}", profile.join("profile").display()),
    ];
    let capabilities = json!({
        "browserName": "chrome",
        "goog:chromeOptions": {"args": arguments},
        "goog:loggingPrefs": {"browser": "ALL"},
    });
    serde_json::from_value(capabilities).expect("an object")
}
