use std::sync::LazyLock;

use super::*;
use crate::measured::{Gpu, Rates, Scale, Uncached};

/// Round figures: an embedding takes 2 ms, the rest of a search that misses 1 ms, a cached answer 0.1.
fn measured() -> Measured {
    let rates = |queries| Rates { queries, passages: queries / 10.0 };
    let stream = |hit_rate: f64| Zipf {
        searches: 10_000.0,
        per_second: 1.0,
        hit_rate,
        embeddings: 10_000.0 * (1.0 - hit_rate),
        cache_mib: 10.0,
    };
    Measured {
        cores: 2.0,
        rates: [rates(1_000.0), rates(2_000.0), rates(4_000.0)],
        gpu: Gpu { cores: 16.0, queries: 40_000.0, passages: 8_000.0 },
        cached_ms: 0.1,
        uncached: Uncached { client: 4.0, embed: 3.0, index: 0.2, documents: 0.3 },
        at_rest_mib: 300.0,
        loaded_mib: 448.0,
        scale: Scale { documents: 100_000.0, disk_mib: 300.0, searched_mib: 400.0, index_ms: 1.0 },
        milvus_ms: 4.0,
        bypassed: stream(0.0),
        cached: stream(0.8),
    }
}

fn assumed() -> Assumptions {
    Assumptions {
        vcpus: 4.0,
        utilisation: 0.6,
        document_bytes: 1_000.0,
        node_vcpus: 16.0,
        node_gib: 64.0,
        copies: 2,
        segment_gib: 1.0,
        precision: Precision::Fp32,
        vcpu_price: 1.0,
        gib_price: 0.1,
        gpu_price: 10.0,
    }
}

#[track_caller]
fn near(is: f64, wanted: f64) {
    assert!((is - wanted).abs() <= 1e-3 * wanted.abs(), "{is} is not {wanted}");
}

/// On the round figures.
fn model() -> Model<'static> {
    static MEASURED: LazyLock<Measured> = LazyLock::new(measured);
    static ASSUMED: LazyLock<Assumptions> = LazyLock::new(assumed);
    Model { measured: &MEASURED, assumed: &ASSUMED }
}

fn demand(documents: f64, per_second: f64, hit_rate: f64) -> Demand {
    Demand { documents, per_second, hit_rate }
}

#[test]
fn a_search_costs_its_share_of_hits_and_of_misses() {
    let cost = model().cost(Precision::Fp32);
    near(cost.missed, 3.0);
    near(cost.average(0.0), 3.0);
    near(cost.average(0.5), 1.55);
    near(cost.load(1_000.0, 0.5), 1.55);
    near(cost.vcpu_hours_per_million(0.0), 3_000.0 / 3_600.0);
}

#[test]
fn a_faster_precision_makes_only_the_embedding_cheaper() {
    near(model().cost(Precision::Int8).missed, 1.5);
    near(model().cost_beside_gpus().missed, 1.1);
}

#[test]
fn there_are_two_servers_however_small_the_load_is() {
    assert_eq!(replicas(0.001, 4.0, 0.6), 2);
}

#[test]
fn the_load_of_a_lost_server_fits_on_the_others() {
    // Two would be busy by 0.59 each, the one that is left by 1.18.
    assert_eq!(replicas(4.7, 4.0, 0.6), 3);
    assert_eq!(replicas(3.6, 4.0, 0.6), 2);
    assert_eq!(replicas(24.0, 4.0, 0.6), 10);
}

#[test]
fn servers_are_small_while_two_small_ones_are_enough() {
    let servers = |per_second| {
        let servers = model().servers_with_model(demand(1e4, per_second, 0.0));
        (servers.count, servers.vcpus)
    };
    assert_eq!(servers(10.0).0, 2);
    near(servers(10.0).1, 1.0);
    near(servers(500.0).1, 2.0);
    assert_eq!(servers(10_000.0).0, 13);
    near(servers(10_000.0).1, 4.0);
}

#[test]
fn memory_of_a_server_counts_caches_and_the_embedded_index_with_a_margin() {
    // 448 + 192 MiB, a quarter more: 800.
    near(model().server_gib(0.0), 1.0);
    let bytes = model().embedded_bytes();
    near(bytes, 100.0 * 1024.0 * 1024.0 / 1e5);
    // A million: 1,000 MiB more, 2,050 in all.
    near(model().server_gib(1e6), 2.5);
    let most = model().embedded_capacity(2.5);
    assert!(most > 1e6 && model().server_gib(0.999 * most) <= 2.5, "{most}");
}

#[test]
fn a_document_of_the_embedded_index_takes_at_least_its_vector_and_links() {
    let measured = Measured { at_rest_mib: 399.0, ..measured() };
    let model = Model { measured: &measured, assumed: &assumed() };
    near(model.embedded_bytes(), 768.0 + 151.08);
}

#[test]
fn a_row_of_milvus_is_vector_links_and_twice_its_text() {
    near(model().milvus_bytes(), 1_536.0 + 151.08 + 2_000.0);
    near(model().milvus_gib(1e6), 4.906);
    near(model().milvus_capacity(4.906), 1e6);
}

#[test]
fn milvus_searches_every_segment() {
    near(model().segments(1e6, 1.0), 3.0);
    near(model().segments(1e4, 1.0), 1.0);
    near(model().milvus_ms(1e5, 1.0), 5.0);
    let (small, large) = (model().milvus_ms(1e8, 1.0), model().milvus_ms(1e8, 8.0));
    assert!(small > 5.0 * large, "{small} {large}");
}

#[test]
fn milvus_is_one_process_until_memory_or_cpus_of_a_node_are_too_little() {
    let milvus = |documents, misses| model().milvus(documents, misses);
    assert!(!milvus(1e6, 100.0).is_cluster);
    let full = milvus(1e8, 1.0);
    // 491 GiB are eight nodes a copy.
    assert_eq!((full.is_cluster, full.nodes.count), (true, 16));
    near(full.nodes.vcpus, 4.0);
    near(full.nodes.gib, 62.0);
    let busy = milvus(1e4, 10_000.0);
    // 4.8 ms a search are 80 vCPUs: five nodes, one more so that both copies have as many.
    assert_eq!((busy.is_cluster, busy.nodes.count), (true, 6));
    near(busy.nodes.vcpus, 14.0);
    near(busy.nodes.gib, 4.0);
}

#[test]
fn redis_keeps_what_misses_while_an_answer_is_kept() {
    let redis = |hit_rate| model().plan(demand(1e4, 1_000.0, hit_rate)).redis.gib;
    let bytes = 10.0 * 1024.0 * 1024.0 / 2_000.0;
    near(redis(0.5), 500.0 * 1_800.0 * bytes * 1.25 / GIB);
    near(redis(0.0), 0.5);
}

#[test]
fn each_instance_of_postgres_can_do_all() {
    let plan = model().plan(demand(1e6, 10_000.0, 0.0));
    assert_eq!(plan.postgres.count, 2);
    near(plan.postgres.vcpus, 10.0);
    near(plan.postgres_disk_gib, 10.0);
    near(model().postgres_disk_gib(1e8), 544.0);
}

#[test]
fn a_price_is_that_of_all_machines() {
    let plan = model().plan(demand(1e4, 10.0, 0.5));
    // Servers 2 × 1, Milvus 1, Redis 1, Postgres 2 × 1.
    near(plan.vcpus(), 6.0);
    near(plan.gib(), 2.0 + 2.0 + 0.5 + 4.0);
    near(plan.price(&assumed()), 6.0 + 0.85);
    near(plan.price_beside_gpus(&assumed()), 6.85 + 2.0 * (16.0 + 0.1 + 10.0));
}

#[test]
fn a_cluster_counts_its_other_roles() {
    let plan = model().plan(demand(1e8, 10.0, 0.5));
    near(plan.vcpus(), 2.0 + 16.0 * 4.0 + 15.0 + 1.0 + 2.0);
}

#[test]
fn indexing_takes_as_long_as_embedding() {
    near(model().indexing_seconds(1e6, Precision::Fp32, 4.0), 5_000.0);
}

#[test]
fn a_stream_is_as_fast_as_its_hits_misses_and_embeddings_allow() {
    near(model().stream_per_second(&measured().bypassed), 2_000.0 / 3.0);
    near(model().stream_per_second(&measured().cached), 2_000.0 / 0.68);
}
