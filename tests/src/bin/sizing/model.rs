//! From figures and a load to what it needs. Nothing here reads or prints. Constants are assumptions;
//! `docs/sizing.md` gives the reason of each.

use crate::assumptions::{Assumptions, Precision};
use crate::measured::{Measured, Zipf};

const DIMENSION: f64 = 384.0;
const NUMBER_BYTES: f64 = 4.0;
/// `M` of HNSW, in Milvus and in the embedded index.
const CONNECTIVITY: f64 = 16.0;
const LINK_BYTES: f64 = 4.0;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Share of its CPUs that a server may use while another is away.
const CROWDED: f64 = 0.9;
/// Memory of a server above what was seen.
const MEMORY_MARGIN: f64 = 1.25;
/// `cache.results_max_bytes` and `cache.embeddings_max_bytes`.
const CACHES_MIB: f64 = 128.0 + 64.0;

/// `cache.results_ttl_seconds`.
const ANSWERS_SECONDS: f64 = 1_800.0;
const REDIS_MARGIN: f64 = 1.25;
const LEAST_REDIS_GIB: f64 = 0.5;

/// Of a document in Postgres without its body: its row 120, its vector 1,640, their indexes 160.
const ROW_BYTES: f64 = 1_920.0;
const POSTGRES_DISK_MARGIN: f64 = 2.0;
const LEAST_POSTGRES_DISK_GIB: f64 = 10.0;
/// CPU time of reading documents, of what the embedded store takes.
const POSTGRES_CPU_MARGIN: f64 = 2.0;
/// Memory, of the disk.
const POSTGRES_CACHED: f64 = 0.1;
const POSTGRES_GIB: (f64, f64) = (2.0, 64.0);
const POSTGRES_INSTANCES: u64 = 2;

/// Share of a node's memory that rows may fill in Milvus.
const MILVUS_FILL: f64 = 0.7;
/// Memory of words and attributes, of the document's bytes.
const MILVUS_ATTRIBUTES: f64 = 2.0;
const LEAST_MILVUS_GIB: f64 = 2.0;
/// vCPUs and GiB of a query node.
const LEAST_QUERY_NODE: f64 = 4.0;
/// All roles of a cluster but the query nodes.
const MILVUS_ROLES: Group = Group { count: 1, vcpus: 15.0, gib: 32.0 };

/// Equal machines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub count: u64,
    /// Of each.
    pub vcpus: f64,
    pub gib: f64,
}

/// What one search takes, in ms of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct SearchCost {
    pub cached: f64,
    pub missed: f64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    pub documents: f64,
    /// At the peak.
    pub per_second: f64,
    /// Share of searches that are answered from a cache.
    pub hit_rate: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Milvus {
    pub is_cluster: bool,
    /// The one, or the query nodes.
    pub nodes: Group,
}

/// What is to be ordered.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Servers with the model in them.
    pub servers: Group,
    /// Servers without, and the machines with one GPU each that embed for them.
    pub servers_beside_gpus: Group,
    pub gpus: Group,
    pub milvus: Milvus,
    pub redis: Group,
    pub postgres: Group,
    /// Of each instance of Postgres.
    pub postgres_disk_gib: f64,
}

impl Group {
    fn all_vcpus(self) -> f64 {
        self.count as f64 * self.vcpus
    }

    fn all_gib(self) -> f64 {
        self.count as f64 * self.gib
    }
}

impl SearchCost {
    /// Of a search on average, in ms of a vCPU.
    pub fn average(self, hit_rate: f64) -> f64 {
        hit_rate * self.cached + (1.0 - hit_rate) * self.missed
    }

    /// vCPUs that are busy all the time.
    pub fn load(self, per_second: f64, hit_rate: f64) -> f64 {
        per_second * self.average(hit_rate) / 1e3
    }

    pub fn vcpu_hours_per_million(self, hit_rate: f64) -> f64 {
        1e6 * self.average(hit_rate) / 1e3 / 3_600.0
    }
}

impl Plan {
    fn stores(&self) -> Vec<Group> {
        let mut stores = vec![self.milvus.nodes, self.redis, self.postgres];
        if self.milvus.is_cluster {
            stores.push(MILVUS_ROLES);
        }
        stores
    }

    /// With the model in the servers.
    pub fn vcpus(&self) -> f64 {
        self.servers.all_vcpus() + self.stores().into_iter().map(Group::all_vcpus).sum::<f64>()
    }

    pub fn gib(&self) -> f64 {
        self.servers.all_gib() + self.stores().into_iter().map(Group::all_gib).sum::<f64>()
    }

    /// Of an hour, without disks, networks and object storage.
    pub fn price(&self, assumed: &Assumptions) -> f64 {
        self.vcpus() * assumed.vcpu_price + self.gib() * assumed.gib_price
    }

    pub fn price_beside_gpus(&self, assumed: &Assumptions) -> f64 {
        let others = Self { servers: self.servers_beside_gpus, ..*self };
        others.price(assumed)
            + self.gpus.all_vcpus() * assumed.vcpu_price
            + self.gpus.all_gib() * assumed.gib_price
            + self.gpus.count as f64 * assumed.gpu_price
    }
}

/// Servers for a load in vCPUs: at least two, none busier than `utilisation`, and enough when one of them
/// is lost.
pub fn replicas(load: f64, vcpus: f64, utilisation: f64) -> u64 {
    let planned = (load / (vcpus * utilisation)).ceil();
    let without_one = (load / (vcpus * CROWDED)).ceil();
    planned.max(without_one + 1.0).max(2.0) as u64
}

/// Links of a vector in all layers.
///
/// # Source
/// Malkov and Yashunin 2018, section 4.2.3, arXiv:1603.09320, with `Mmax0 = 2 M`, `Mmax = M`, `mL = 1 / ln M`.
fn link_bytes() -> f64 {
    (2.0 * CONNECTIVITY + CONNECTIVITY / CONNECTIVITY.ln()) * LINK_BYTES
}

pub struct Model<'a> {
    pub measured: &'a Measured,
    pub assumed: &'a Assumptions,
}

impl Model<'_> {
    /// CPU time of a query's embedding when all cores are busy with others, in ms.
    pub fn embed_ms(&self, precision: Precision) -> f64 {
        1e3 * self.measured.cores / self.measured.rates(precision).queries
    }

    /// Of a search that misses, beside its embedding. Its caller waits, so what the client and the
    /// network of one machine take is in it.
    pub fn around_ms(&self) -> f64 {
        self.measured.uncached.client - self.measured.uncached.embed
    }

    /// With the model in the server and the index in Milvus: asking Milvus is taken to cost what the
    /// embedded index does with few documents.
    pub fn cost(&self, precision: Precision) -> SearchCost {
        let missed = self.embed_ms(precision) + self.around_ms();
        SearchCost { cached: self.measured.cached_ms, missed }
    }

    /// Where others embed: asking them is taken to cost what a cached answer does.
    pub fn cost_beside_gpus(&self) -> SearchCost {
        let cached = self.measured.cached_ms;
        SearchCost { cached, missed: self.around_ms() + cached }
    }

    /// With everything in one server.
    pub fn cost_embedded(&self, documents: f64) -> SearchCost {
        let cost = self.cost(self.assumed.precision);
        let missed = cost.missed - self.measured.uncached.index + self.graph_ms(documents);
        SearchCost { missed, ..cost }
    }

    /// A search of one graph.
    ///
    /// # Source
    /// It grows with the logarithm of the size: Malkov and Yashunin 2018, section 4.2.1.
    fn graph_ms(&self, documents: f64) -> f64 {
        let scale = &self.measured.scale;
        scale.index_ms * documents.max(2.0).ln() / scale.documents.ln()
    }

    fn servers(&self, load: f64) -> Group {
        let utilisation = self.assumed.utilisation;
        let enough =
            |vcpus: &f64| *vcpus < self.assumed.vcpus && replicas(load, *vcpus, utilisation) == 2;
        let vcpus = [1.0, 2.0].into_iter().find(enough).unwrap_or(self.assumed.vcpus);
        Group { count: replicas(load, vcpus, utilisation), vcpus, gib: self.server_gib(0.0) }
    }

    pub fn servers_with_model(&self, demand: Demand) -> Group {
        let cost = self.cost(self.assumed.precision);
        self.servers(cost.load(demand.per_second, demand.hit_rate))
    }

    /// Memory of a server, in halves of a GiB. With the embedded index, that of its documents, too.
    pub fn server_gib(&self, embedded_documents: f64) -> f64 {
        let index_mib = embedded_documents * self.embedded_bytes() / MIB;
        let mib = self.measured.loaded_mib + CACHES_MIB + index_mib;
        (MEMORY_MARGIN * mib / 512.0).ceil() / 2.0
    }

    /// Of a document in the memory of the embedded index: as measured, and at least its vector at half
    /// precision with its links.
    pub fn embedded_bytes(&self) -> f64 {
        let scale = &self.measured.scale;
        let seen = (scale.searched_mib - self.measured.at_rest_mib) * MIB / scale.documents;
        seen.max(DIMENSION * NUMBER_BYTES / 2.0 + link_bytes())
    }

    /// Documents whose embedded index fits into a server of this memory.
    pub fn embedded_capacity(&self, gib: f64) -> f64 {
        let mib = gib * 1024.0 / MEMORY_MARGIN - self.measured.loaded_mib - CACHES_MIB;
        mib.max(0.0) * MIB / self.embedded_bytes()
    }

    pub fn embedded_disk_gib(&self, documents: f64) -> f64 {
        let scale = &self.measured.scale;
        documents * scale.disk_mib / scale.documents / 1024.0
    }

    /// Of a row in Milvus, all in memory: vector, links, words and attributes.
    pub fn milvus_bytes(&self) -> f64 {
        DIMENSION * NUMBER_BYTES + link_bytes() + MILVUS_ATTRIBUTES * self.assumed.document_bytes
    }

    /// Memory of one copy with room to work in.
    pub fn milvus_gib(&self, documents: f64) -> f64 {
        documents * self.milvus_bytes() / GIB / MILVUS_FILL
    }

    pub fn milvus_capacity(&self, gib: f64) -> f64 {
        gib * MILVUS_FILL * GIB / self.milvus_bytes()
    }

    pub fn segments(&self, documents: f64, segment_gib: f64) -> f64 {
        let bytes = documents * (DIMENSION * NUMBER_BYTES + self.assumed.document_bytes);
        (bytes / (segment_gib * GIB)).ceil().max(1.0)
    }

    /// CPU time of a search in Milvus, in ms: one call as measured, and a search of each segment's graph.
    pub fn milvus_ms(&self, documents: f64, segment_gib: f64) -> f64 {
        let segments = self.segments(documents, segment_gib);
        self.measured.milvus_ms + segments * self.graph_ms(documents / segments)
    }

    /// One process while it fits on a node, else a cluster with copies on query nodes of their own.
    pub fn milvus(&self, documents: f64, misses_per_second: f64) -> Milvus {
        let (node_vcpus, node_gib) = (self.assumed.node_vcpus, self.assumed.node_gib);
        let busy = misses_per_second * self.milvus_ms(documents, self.assumed.segment_gib) / 1e3;
        let vcpus = (busy / self.assumed.utilisation).ceil().max(1.0);
        let gib = self.milvus_gib(documents).ceil().max(LEAST_MILVUS_GIB);
        if vcpus <= node_vcpus && gib <= node_gib {
            return Milvus { is_cluster: false, nodes: Group { count: 1, vcpus, gib } };
        }
        let copies = f64::from(self.assumed.copies);
        let of_a_copy = (gib / node_gib).ceil().max((vcpus / node_vcpus / copies).ceil());
        let nodes = Group {
            count: (copies * of_a_copy) as u64,
            vcpus: (vcpus / copies / of_a_copy).ceil().max(LEAST_QUERY_NODE),
            gib: (gib / of_a_copy).ceil().max(LEAST_QUERY_NODE),
        };
        Milvus { is_cluster: true, nodes }
    }

    /// Of a query in the caches: its answer and its embedding.
    pub fn cached_bytes(&self) -> f64 {
        self.measured.cached.cache_mib * MIB / self.measured.cached.embeddings
    }

    /// What misses in the time that an answer is kept. Without hits a cache is of no use.
    fn redis(&self, demand: Demand) -> Group {
        let is_useful = demand.hit_rate > 0.0;
        let kept = if is_useful { demand.misses_per_second() * ANSWERS_SECONDS } else { 0.0 };
        let gib = kept * self.cached_bytes() * REDIS_MARGIN / GIB;
        Group { count: 1, vcpus: 1.0, gib: gib.max(LEAST_REDIS_GIB) }
    }

    pub fn postgres_disk_gib(&self, documents: f64) -> f64 {
        let bytes = documents * (ROW_BYTES + self.assumed.document_bytes);
        (bytes * POSTGRES_DISK_MARGIN / GIB).ceil().max(LEAST_POSTGRES_DISK_GIB)
    }

    /// Each instance can do all of it.
    fn postgres(&self, demand: Demand) -> Group {
        let read_ms = self.measured.uncached.documents * POSTGRES_CPU_MARGIN;
        let busy = demand.misses_per_second() * read_ms / 1e3;
        let (least, most) = POSTGRES_GIB;
        Group {
            count: POSTGRES_INSTANCES,
            vcpus: (busy / self.assumed.utilisation).ceil().max(1.0),
            gib: (self.postgres_disk_gib(demand.documents) * POSTGRES_CACHED).clamp(least, most),
        }
    }

    fn gpus(&self, demand: Demand) -> Group {
        let gpu = &self.measured.gpu;
        // In units of one GPU.
        let load = demand.misses_per_second() / gpu.queries;
        let count = replicas(load, 1.0, self.assumed.utilisation);
        Group { count, vcpus: gpu.cores, gib: self.server_gib(0.0) }
    }

    pub fn plan(&self, demand: Demand) -> Plan {
        let beside_gpus = self.cost_beside_gpus().load(demand.per_second, demand.hit_rate);
        Plan {
            servers: self.servers_with_model(demand),
            servers_beside_gpus: self.servers(beside_gpus),
            gpus: self.gpus(demand),
            milvus: self.milvus(demand.documents, demand.misses_per_second()),
            redis: self.redis(demand),
            postgres: self.postgres(demand),
            postgres_disk_gib: self.postgres_disk_gib(demand.documents),
        }
    }

    /// Time to embed so many passages on CPUs, in seconds.
    pub fn indexing_seconds(&self, documents: f64, precision: Precision, vcpus: f64) -> f64 {
        let per_vcpu = self.measured.rates(precision).passages / self.measured.cores;
        documents / (per_vcpu * vcpus)
    }

    /// What the Zipf stream should reach, in searches per second, on the cores that it had.
    pub fn stream_per_second(&self, stream: &Zipf) -> f64 {
        let embedded = stream.embeddings / stream.searches * self.embed_ms(Precision::Fp32);
        let cost = SearchCost { cached: self.measured.cached_ms, missed: self.around_ms() };
        1e3 * self.measured.cores / (cost.average(stream.hit_rate) + embedded)
    }
}

impl Demand {
    pub fn misses_per_second(self) -> f64 {
        self.per_second * (1.0 - self.hit_rate)
    }
}

#[cfg(test)]
mod tests;
