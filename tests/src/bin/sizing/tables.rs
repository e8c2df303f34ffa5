//! The tables of `docs/sizing.md`, by the names of their places in it.

use crate::assumptions::Precision;
use crate::measured::{Figure, Sources};
use crate::model::{Demand, Group, Milvus, Model};

const DOCUMENTS: [f64; 3] = [1e4, 1e6, 1e8];
const PER_SECOND: [f64; 3] = [10.0, 1e3, 1e4];
const HIT_RATES: [f64; 4] = [0.0, 0.5, 0.7, 0.9];
/// Larger segments of Milvus, to compare with, in GiB.
const LARGE_SEGMENT_GIB: f64 = 8.0;
const MANY_VCPUS: f64 = 64.0;

type Table = (&'static str, String);

pub fn all(model: &Model, sources: &Sources) -> Vec<Table> {
    vec![
        ("inputs", inputs(sources)),
        ("machines", machines(sources)),
        ("costs", costs(model)),
        ("check", check(model)),
        ("million", million(model)),
        ("servers", servers(model)),
        ("hit-rate-70", grid(model, 0.7)),
        ("hit-rate-0", grid(model, 0.0)),
        ("one-server", one_server(model)),
        ("milvus", milvus(model)),
        ("limits", limits(model)),
        ("indexing", indexing(model)),
    ]
}

fn inputs(sources: &Sources) -> String {
    let row =
        |figure: &Figure| vec![figure.what.to_owned(), number(figure.value), figure.place.clone()];
    table(&["figure", "value", "where it stands"], sources.figures.iter().map(row))
}

fn machines(sources: &Sources) -> String {
    let row = |(file, machine): &(String, String)| {
        vec![format!("[{file}](measured/{file})"), machine.clone()]
    };
    table(&["output", "machine, date"], sources.machines.iter().map(row))
}

fn costs(model: &Model) -> String {
    let name = |what: &str, precision: Precision| format!("{what}, {}", precision.name());
    let mut rows = vec![
        vec!["answer from a cache".to_owned(), number(model.measured.cached_ms)],
        vec!["search that misses, without its embedding".to_owned(), number(model.around_ms())],
    ];
    for precision in Precision::ALL {
        rows.push(vec![name("embedding of a query", precision), number(model.embed_ms(precision))]);
    }
    for precision in Precision::ALL {
        let missed = model.cost(precision).missed;
        rows.push(vec![name("search that misses, in all", precision), number(missed)]);
    }
    let beside = model.cost_beside_gpus().missed;
    rows.push(vec!["search that misses, embedded elsewhere".to_owned(), number(beside)]);
    table(&["", "ms of a vCPU"], rows)
}

fn check(model: &Model) -> String {
    let streams = [
        ("every search computed anew", &model.measured.bypassed),
        ("with caches", &model.measured.cached),
    ];
    let rows = streams.map(|(what, stream)| {
        let computed = model.stream_per_second(stream);
        vec![what.to_owned(), number(computed), number(stream.per_second)]
    });
    table(&["Zipf stream", "searches/s, computed", "measured"], rows)
}

fn million(model: &Model) -> String {
    let assumed = model.assumed;
    let price = format!("price, {}", assumed.precision.name());
    let columns = [
        "hit rate",
        "embeddings",
        "vCPU-hours, fp32",
        "bf16",
        "int8",
        "vCPU-hours beside GPUs",
        "GPU-seconds",
        &price,
    ];
    let rows = HIT_RATES.map(|hit_rate| {
        let missed = 1e6 * (1.0 - hit_rate);
        let hours = |precision| model.cost(precision).vcpu_hours_per_million(hit_rate);
        let mut row = vec![share(hit_rate), grouped(missed)];
        row.extend(Precision::ALL.map(|precision| number(hours(precision))));
        row.push(number(model.cost_beside_gpus().vcpu_hours_per_million(hit_rate)));
        row.push(number(missed / model.measured.gpu.queries));
        let ordered = hours(assumed.precision) / assumed.utilisation;
        row.push(number(ordered * assumed.vcpu_price));
        row
    });
    table(&columns, rows)
}

fn servers(model: &Model) -> String {
    let rows = HIT_RATES.map(|hit_rate| {
        let servers = |per_second| {
            let demand = Demand { documents: 0.0, per_second, hit_rate };
            group(model.servers_with_model(demand))
        };
        let mut row = vec![share(hit_rate)];
        row.extend(PER_SECOND.map(servers));
        row
    });
    table(&["hit rate", "10 searches/s", "1,000 searches/s", "10,000 searches/s"], rows)
}

fn grid(model: &Model, hit_rate: f64) -> String {
    let columns = [
        "documents",
        "searches/s",
        "API servers",
        "Milvus",
        "Redis GiB",
        "Postgres; disk of each",
        "vCPUs",
        "GiB",
        "price of an hour",
        "or API servers beside GPUs",
        "price of an hour",
    ];
    let mut rows = Vec::new();
    for documents in DOCUMENTS {
        for per_second in PER_SECOND {
            let plan = model.plan(Demand { documents, per_second, hit_rate });
            let disk = format!("{}; {} GiB", group(plan.postgres), gib(plan.postgres_disk_gib));
            let gpus = format!("{}; {} GPUs", group(plan.servers_beside_gpus), plan.gpus.count);
            rows.push(vec![
                grouped(documents),
                grouped(per_second),
                group(plan.servers),
                of_milvus(plan.milvus),
                gib(plan.redis.gib),
                disk,
                grouped(plan.vcpus()),
                gib(plan.gib()),
                number(plan.price(model.assumed)),
                gpus,
                number(plan.price_beside_gpus(model.assumed)),
            ]);
        }
    }
    table(&columns, rows)
}

fn one_server(model: &Model) -> String {
    let vcpus = model.assumed.vcpus;
    let rates =
        [0.0, 0.7].map(|hit| format!("searches/s on {vcpus:.0} vCPUs, hit rate {}", share(hit)));
    let columns = ["documents", "memory GiB", "disk GiB", &rates[0], &rates[1]];
    let rows = DOCUMENTS.map(|documents| {
        let cost = model.cost_embedded(documents);
        let most = |hit_rate| 1e3 * vcpus * model.assumed.utilisation / cost.average(hit_rate);
        vec![
            grouped(documents),
            gib(model.server_gib(documents)),
            number(model.embedded_disk_gib(documents)),
            number(most(0.0)),
            number(most(0.7)),
        ]
    });
    table(&columns, rows)
}

fn milvus(model: &Model) -> String {
    let sizes = [model.assumed.segment_gib, LARGE_SEGMENT_GIB];
    let [small, large] = sizes.map(|size| format!("segments of {size:.0} GiB"));
    let columns = ["documents", "GiB a copy", &small, "ms of a vCPU", &large, "ms of a vCPU"];
    let rows = DOCUMENTS.map(|documents| {
        let mut row = vec![grouped(documents), number(model.milvus_gib(documents))];
        for size in sizes {
            row.push(grouped(model.segments(documents, size)));
            row.push(number(model.milvus_ms(documents, size)));
        }
        row
    });
    table(&columns, rows)
}

fn limits(model: &Model) -> String {
    let assumed = model.assumed;
    let (vcpus, memory) = (assumed.node_vcpus, assumed.node_gib);
    let first = format!("on one node of {vcpus:.0} vCPUs and {memory:.0} GiB");
    let (embedded, milvus) = (model.embedded_capacity(memory), model.milvus_capacity(memory));
    let mut rows =
        vec![vec!["documents in its memory".to_owned(), millions(embedded), millions(milvus)]];
    for documents in DOCUMENTS {
        let most = |capacity: f64, ms: f64| {
            let fits = documents <= capacity;
            let searches = number(1e3 * vcpus * assumed.utilisation / ms);
            if fits { searches } else { "does not fit".to_owned() }
        };
        rows.push(vec![
            format!("searches/s that miss, {} documents", grouped(documents)),
            most(embedded, model.cost_embedded(documents).missed),
            most(milvus, model.milvus_ms(documents, assumed.segment_gib)),
        ]);
    }
    table(&[&first, "embedded index, with the model", "standalone Milvus"], rows)
}

fn indexing(model: &Model) -> String {
    let vcpus = [model.assumed.vcpus, MANY_VCPUS];
    let mut columns = vec!["documents".to_owned()];
    for count in vcpus {
        let named = Precision::ALL.map(|it| format!("{count:.0} vCPUs, {}", it.name()));
        columns.extend(named);
    }
    columns.push("one GPU, bf16".to_owned());
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let rows = DOCUMENTS.map(|documents| {
        let mut row = vec![grouped(documents)];
        for count in vcpus {
            row.extend(
                Precision::ALL
                    .map(|precision| duration(model.indexing_seconds(documents, precision, count))),
            );
        }
        row.push(duration(documents / model.measured.gpu.passages));
        row
    });
    table(&columns, rows)
}

fn table(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(columns);
    text += &line(&vec!["---"; columns.len()]);
    for row in rows {
        text += &line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    text
}

fn of_milvus(milvus: Milvus) -> String {
    let nodes = group(milvus.nodes);
    if milvus.is_cluster { format!("cluster, query nodes {nodes}") } else { nodes }
}

fn group(group: Group) -> String {
    format!("{} × {:.0} vCPU, {} GiB", group.count, group.vcpus, gib(group.gib))
}

fn share(of_one: f64) -> String {
    format!("{:.0} %", 100.0 * of_one)
}

/// With a tenth below ten.
fn gib(gib: f64) -> String {
    if gib < 10.0 && gib.fract() > 0.0 { format!("{gib:.1}") } else { grouped(gib.ceil()) }
}

fn millions(documents: f64) -> String {
    format!("{} million", number(documents / 1e6))
}

fn duration(seconds: f64) -> String {
    let (value, unit) = match seconds {
        ..120.0 => (seconds, "s"),
        ..7_200.0 => (seconds / 60.0, "min"),
        ..172_800.0 => (seconds / 3_600.0, "h"),
        _ => (seconds / 86_400.0, "days"),
    };
    format!("{} {unit}", number(value))
}

/// With the digits that mean something.
fn number(value: f64) -> String {
    match value {
        ..=0.0 => "0".to_owned(),
        100.0.. => grouped(value),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Without a fraction, thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        assert_eq!(number(0.0), "0");
        assert_eq!(number(0.01664), "0.017");
        assert_eq!(number(2.345), "2.35");
        assert_eq!(number(99.94), "99.9");
        assert_eq!(number(1_234_567.8), "1,234,568");
        assert_eq!((gib(1.5), gib(2.0), gib(46.1)), ("1.5".into(), "2".into(), "47".into()));
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        assert_eq!(duration(95.0), "95.0 s");
        assert_eq!(duration(3_600.0), "60.0 min");
        assert_eq!(duration(86_400.0), "24.0 h");
        assert_eq!(duration(1e6), "11.6 days");
    }

    #[test]
    fn a_table_has_a_line_for_its_columns_and_one_for_each_row() {
        let text = table(&["a", "b"], [vec!["1".to_owned(), "2".to_owned()]]);
        assert_eq!(text, "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
    }
}
