//! The search page in a real browser, against the real server with the sample catalogue.
#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::Path;

use fantoccini::key::Key;
use serde_json::{Value, json};
use sextant_tests::browser::Browser;
use sextant_tests::{Options, Server, cli, repository};

const HITS: &str = "#results > li";
/// Every text that a hit of the first page shows as its title.
const TITLES: &str = "[...document.querySelectorAll('#results .title')].map((t) => t.textContent)";

fn samples(options: Options) -> Options {
    options.seed("exercises", &repository("deploy/samples/exercises.ndjson"))
}

async fn opened(server: &Server, width: u32, height: u32, path: &str) -> Browser {
    let browser = Browser::start(width, height).await;
    browser.page.goto(&format!("{}{path}", server.url)).await.unwrap();
    browser
}

fn shows(count: &str) -> String {
    format!("document.querySelectorAll('{HITS}').length {count}")
}

/// The page has complained of nothing and has asked nobody but its server.
async fn is_content(browser: &Browser, server: &Server) {
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    let asked = browser.value("performance.getEntriesByType('resource').map((e) => e.name)").await;
    let asked = asked.as_array().unwrap();
    assert!(!asked.is_empty());
    for url in asked {
        assert!(url.as_str().unwrap().starts_with(&format!("{}/", server.url)), "{url}");
    }
}

async fn screenshot(browser: &Browser, path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, browser.page.screenshot().await.unwrap()).unwrap();
}

#[tokio::test]
async fn typing_shows_hits_and_the_same_search_again_comes_from_the_cache() {
    let server = Server::start(samples(Options::model())).await;
    let browser = opened(&server, 1280, 900, "/").await;
    browser.until("document.activeElement?.id === 'query'").await;
    browser.until("!document.getElementById('empty').hidden").await;
    browser.keys("#query", "goblet squat").await;
    browser.until(&shows("=== 10")).await;
    browser.until(&format!("{TITLES}[0] === 'Goblet Squat'")).await;
    browser.until("document.getElementById('cache-status').textContent === 'Cache: miss'").await;
    assert_eq!(browser.value("document.title").await, "goblet squat – Sextant");
    assert_eq!(browser.value("location.search").await, "?q=goblet+squat");
    // What the query and a hit have in common is marked, and the times are shown.
    browser.until("document.querySelector('#results .title mark')?.textContent === 'Goblet'").await;
    browser.until("document.querySelectorAll('#timing li').length >= 3").await;

    browser.keys("#query", &Key::Enter.to_string()).await;
    browser
        .until("document.getElementById('cache-status').textContent === 'Cache: hit (memory)'")
        .await;

    browser.click("#more").await;
    browser.until(&shows("=== 20")).await;
    is_content(&browser, &server).await;
    browser.close().await;
}

#[tokio::test]
async fn a_facet_narrows_the_hits_and_a_link_restores_them() {
    let server = Server::start(samples(Options::model())).await;
    let browser = opened(&server, 1280, 900, "/?q=stronger+legs").await;
    browser.until(&shows("=== 10")).await;
    assert_eq!(browser.value("document.getElementById('query').value").await, "stronger legs");

    let facet = "#facets input[data-field='equipment'][data-value='kettlebell']";
    let label = format!("document.querySelector(\"{facet}\")");
    browser.until(&format!("{label} !== null")).await;
    browser.value(&format!("{label}.click()")).await;
    let narrowed = "[...document.querySelectorAll('#results > li')].length > 0 && \
        [...document.querySelectorAll('#results > li')].every((li) => \
        li.querySelector(\"[data-key$='/equipment:kettlebell']\"))";
    browser.until(narrowed).await;
    browser
        .until("document.querySelector('#active .chip').textContent.includes('kettlebell')")
        .await;
    let titles = browser.value(TITLES).await;

    let link = browser.value("location.href").await;
    let link = link.as_str().unwrap();
    assert!(link.contains("q=stronger+legs") && link.contains("kettlebell"), "{link}");
    browser.page.goto("about:blank").await.unwrap();
    browser.page.goto(link).await.unwrap();
    browser.until(narrowed).await;
    assert_eq!(browser.value(TITLES).await, titles);
    browser.until(&format!("{label}.checked")).await;

    // Back leads to the search without the facet, as it was.
    browser.value(&format!("{label}.click()")).await;
    browser.until("!location.search.includes('kettlebell')").await;
    browser.page.back().await.unwrap();
    browser.until("location.search.includes('kettlebell')").await;
    browser.until(narrowed).await;
    is_content(&browser, &server).await;
    browser.close().await;
}

#[tokio::test]
async fn a_search_that_was_made_is_suggested_and_the_keyboard_is_enough() {
    let server = Server::start(samples(Options::model())).await;
    for query in ["balance on one foot", "better balance"] {
        server.api.search("exercises", &json!({"query": query})).await;
    }
    // Counted a few seconds later, when nobody types on.
    sextant_tests::eventually("the search is counted", async || {
        let path = "/v1/collections/exercises/suggest?q=balance";
        let suggested = server.api.get(path).await.ok();
        (suggested["suggestions"] != json!([])).then_some(())
    })
    .await;

    let browser = opened(&server, 1280, 900, "/").await;
    browser.until("!document.getElementById('empty').hidden").await;
    browser.value("document.activeElement.blur()").await;
    browser.keys("body", "/").await;
    browser.until("document.activeElement?.id === 'query'").await;
    assert_eq!(browser.value("document.getElementById('query').value").await, "");

    browser.keys("#query", "bal").await;
    let option = "document.querySelector('#suggestions [role=option]')";
    browser.until(&format!("{option}?.dataset.query === 'balance on one foot'")).await;
    browser.keys("#query", &Key::Down.to_string()).await;
    browser.until(&format!("{option}.ariaSelected === 'true'")).await;
    browser.keys("#query", &Key::Enter.to_string()).await;
    browser.until("document.getElementById('query').value === 'balance on one foot'").await;
    browser.until("document.title.startsWith('balance on one foot')").await;
    browser.until(&shows("=== 10")).await;
    browser.until("document.getElementById('suggestions').hidden").await;

    // Down to the first hit, open it, close it, and back to the box.
    browser.until("document.getElementById('results').getAttribute('aria-busy') === 'false'").await;
    browser.keys("#query", &Key::Down.to_string()).await;
    let title = "document.querySelector('#results .title')";
    browser.until(&format!("document.activeElement === {title}")).await;
    browser.keys("#results .title", &Key::Enter.to_string()).await;
    browser.until(&format!("{title}.getAttribute('aria-expanded') === 'true'")).await;
    browser.keys("#results .title", &Key::Escape.to_string()).await;
    browser.until(&format!("{title}.getAttribute('aria-expanded') === 'false'")).await;
    browser.keys("#results .title", &Key::Up.to_string()).await;
    browser.until("document.activeElement?.id === 'query'").await;
    is_content(&browser, &server).await;
    browser.close().await;
}

#[tokio::test]
async fn a_phone_shows_everything_within_its_width() {
    let server = Server::start(samples(Options::model())).await;
    let browser = opened(&server, 360, 740, "/").await;
    let fits = "document.documentElement.scrollWidth <= innerWidth && innerWidth === 360";
    browser.until("!document.getElementById('empty').hidden").await;
    assert_eq!(browser.value(fits).await, true, "the empty page");
    browser.keys("#query", "my upper back is stiff from sitting at a screen").await;
    browser.until(&shows("=== 10")).await;
    assert_eq!(browser.value(fits).await, true, "with hits");
    browser
        .value("[...document.querySelectorAll('#results .title')].forEach((t) => t.click())")
        .await;
    browser.click("#filters summary").await;
    assert_eq!(browser.value(fits).await, true, "with open hits and filters");
    let beyond = "[...document.querySelectorAll('main *')].filter((e) => e.checkVisibility() && \
        !e.closest('.unseen') && e.getBoundingClientRect().right > innerWidth + 1)\
        .map((e) => e.outerHTML.slice(0, 80))";
    assert_eq!(browser.value(beyond).await, json!([]));
    is_content(&browser, &server).await;
    browser.close().await;
}

#[tokio::test]
async fn a_server_with_keys_is_asked_with_the_key_that_was_typed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.yaml");
    let add = ["keys", "add", "--name", "web", "--scopes", "read", "--file"];
    let key = cli(add).arg(&file).output().await.unwrap();
    let key = String::from_utf8(key.stdout).unwrap().trim().to_owned();
    let options = Options::hash().set("auth.keys_file", file.to_str().unwrap());
    let server = Server::start(samples(options)).await;

    let browser = opened(&server, 1280, 900, "/?q=squat").await;
    browser.until("!document.getElementById('auth').hidden").await;
    browser.keys("#api-key", "sxt_wrong").await;
    browser.click("#auth-form button").await;
    browser
        .until("document.getElementById('auth-detail').textContent.includes('known API key')")
        .await;
    assert_eq!(browser.value(TITLES).await, json!([]));

    browser.keys("#api-key", &key).await;
    browser.click("#auth-form button").await;
    browser.until(&shows("=== 10")).await;
    browser.until("document.getElementById('auth').hidden").await;
    let kept =
        browser.value("JSON.stringify([localStorage, location.href, document.cookie])").await;
    assert!(!kept.as_str().unwrap().contains(&key), "the key outlives the tab: {kept}");

    browser.page.refresh().await.unwrap();
    browser.until(&shows("=== 10")).await;
    browser.click("#forget").await;
    browser.until("!document.getElementById('auth').hidden").await;
    assert_eq!(browser.value(TITLES).await, json!([]));
    // The browser itself tells of answers like 401; there is nothing else to complain about.
    let complaints = browser.complaints().await;
    assert!(complaints.iter().all(|told| told.contains("401")), "{complaints:?}");
    browser.close().await;
}

#[tokio::test]
async fn a_document_that_holds_markup_is_shown_as_text() {
    let server = Server::start(Options::hash()).await;
    server.api.put("/v1/collections/moves", &json!({})).await.ok();
    let markup = "<img src=x onerror='document.title = 1'><script>document.title = 2</script>";
    let document = json!({"name": markup, "description": markup, "level": markup});
    server.api.put("/v1/collections/moves/documents/evil", &document).await.ok();
    let browser = opened(&server, 1280, 900, "/?q=img").await;
    browser.until(&shows("=== 1")).await;
    browser.click("#results .title").await;
    assert_eq!(browser.value(TITLES).await, json!([markup]));
    assert_eq!(browser.value("document.querySelectorAll('main img, main script').length").await, 0);
    assert_eq!(browser.value("document.title").await, "img – Sextant");
    is_content(&browser, &server).await;
    browser.close().await;
}

/// Takes pictures for the documentation when `SEXTANT_SCREENSHOT` names a file: the file itself, and
/// beside it one in the dark and one of a phone.
#[tokio::test]
async fn pictures_are_taken_when_they_are_asked_for() {
    let Some(path) = std::env::var_os("SEXTANT_SCREENSHOT") else { return };
    let path = Path::new(&path);
    let server = Server::start(samples(Options::model())).await;
    let query = "/?q=undo+the+hunch+of+a+day+at+the+desk";
    for (width, height, scheme, name) in [
        (1280, 900, "light", path.to_owned()),
        (1280, 900, "dark", path.with_extension("dark.png")),
        (390, 844, "light", path.with_extension("phone.png")),
    ] {
        let browser = Browser::start(width, height).await;
        browser.prefer("prefers-color-scheme", scheme).await;
        browser.page.goto(&format!("{}{query}", server.url)).await.unwrap();
        browser.until(&shows("=== 10")).await;
        browser.until("document.getAnimations().length === 0").await;
        let seen = format!("matchMedia('(prefers-color-scheme: {scheme})').matches");
        assert_eq!(browser.value(&seen).await, Value::Bool(true));
        screenshot(&browser, &name).await;
        browser.close().await;
    }
}
