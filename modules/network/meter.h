/* SPDX-License-Identifier: GPL-2.0-only
 *
 * The meter's tables, as the kernel's programs and layout.py both see them.
 *
 * Every word has one writer: user space writes the limits, and the kernel writes what was used and spent. So neither
 * ever has to read, change and write back a word that the other may be changing. A top-up is one aligned store of eight
 * bytes into mapped memory, so the bytes of a packet that is counted meanwhile can't get lost.
 *
 * If you change a struct here, raise LAYOUT: a daemon adopts running tables only if their LAYOUT is its own.
 */
#ifndef NGP_METER_H
#define NGP_METER_H

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define LAYOUT 14

/* config.flags */
#define SELLS (1 << 0)
#define BUYS (1 << 1)
#define IPV4 (1 << 2)
#define IPV6 (1 << 3)
#define FREE4 (1 << 4)
#define FREE6 (1 << 5)
#define LAYER3 (1 << 6)                                       /* there is a mesh interface without link addresses */
#define PREFIXES(role, v6) (1 << (8 + 2 * (role) + (v6)))     /* there is a contract for a prefix; by role and family */
#define OFFERS(v6) (1 << (12 + (v6)))                         /* there is a payment service; by family */
#define OWN_SERVICES (1 << 14)                                /* there is a payment service on this host */
#define HAS_UPPERS (1 << 15)                                  /* a macvlan is on top of a mesh interface: ngp_uppers */
#define SEVERAL_LINKS (1 << 17)                               /* a neighbour has several links: see use_first_link */
#define ALONE (1 << 18)                                       /* one mesh interface, no LAN: all others are upstream */
#define NOTHING_BOUGHT (1 << 19)                              /* no contract is a purchase of ours */
#define REWRITES (1 << 16)                                    /* rules of this host rewrite destinations: sent.h */

#define GIFTS (FREE4 | FREE6 | OFFERS(0) | OFFERS(1))          /* something is given away */

enum role { SERVER, CLIENT };

/* A line's tag: 8 bits of flags, then 24 bits of generation. In a contract's tag the upper half is the slot of the
 * contract's account (0: none). */
#define VALID 1
#define BLOCKED 2
#define WIDE 4                                                /* a neighbour's contract for several addresses: see note_host */
#define DEFAULT_ROUTE 8                                       /* one for 0.0.0.0/0 or ::/0: see covers_mesh */
#define RESOLD 16                                             /* one of those, and we buy the default route ourselves */
#define GENERATION(tag) ((__u32)(tag) >> 8)
#define ACCOUNT(tag) ((__u32)((tag) >> 32))
#define ACCOUNTS 65536

/* The flags of an interface in ngp_interfaces; an interface that isn't in it is upstream. */
#define MESH 1
#define LAN 2
#define LINK_ADDRESSES 4                                      /* user space alone uses 8: ngp made the clsact qdisc */

#define TENANTS 0                                             /* in the place of a neighbour's number: no neighbour has 0 */

#define BUYS_FROM_US 1                                        /* neighbour.flags */
#define SELLS_TO_US 2
#define SHUT_OUT 4                                            /* blocked by our operator: gets no lane */
#define HAS_PAID 8                                            /* it paid us */
#define WAS_PAID 16                                           /* we paid it */

enum hint_kind { LOW = 1, EXHAUSTED, ACCOUNT_LOW, ACCOUNT_EXHAUSTED, UNBOUGHT };
enum counter {                                                /* layout.py says what each of them counts */
	REFUSED_EXHAUSTED, REFUSED_EXPIRED, REFUSED_BLOCKED, UNCOVERED, HELD, HELD_BEFORE, OVER_RATE, CONTENDED, HINTS_LOST,
	LANE_BYTES, LANE_OVER_RATE, REFUSED_UNPAID, UNPAID_BYTES, UNPAID_OVER_RATE, UNSOLD_BYTES, COUNTERS
};

struct config {
	__u64 flags;
	__u32 layout;
	__be16 link_port;
	__u8 flows_bits, flows_on_grace_bits;                     /* 2^bits flows are kept for one payer; for one on grace */
	__u64 stranger_interval_ns, stranger_burst_ns;
	__u64 neighbour_interval_ns, neighbour_burst_ns;
	__u64 hold_window_ns;                                     /* packets to a destination that are held in each window: */
	__u64 hold_packets, hold_packets_paid;                    /* those of any neighbour; of one that has paid */
	__u64 lane_kib_ns, lane_burst_ns;                         /* a lane's rate, as the time that 1,024 bytes take */
	__u64 unpaid_kib_ns, unpaid_burst_ns;                     /* UNPAID_RATE (unpaid.h) in the same way; 0: nothing */
};

/* One cache line: what a contract lets pass, in bytes. `mark` is a number for the limit that a packet met last
 * (mark_of). */
struct contract {
	__u64 limit, expires_ns, low_water, tag, price;           /* user space writes these; price: units a byte */
	__u64 used, used_to, mark;                                /* the kernel writes these; used: both directions */
};

/* One cache line: what a client's contracts may spend together, in units of msat / 2^30, so that nothing is rounded.
 * 2^64 units are only 17 million sat, so the words wrap: only signed differences of words mean anything. If a contract
 * refuses a packet for which the account has paid, the cost is added to `returned`, and not taken from `spent`: so
 * each word that the kernel writes only grows. */
struct account {
	__u64 limit, credit, credit_until_ns, low_water, tag;     /* user space writes these */
	__u64 spent, returned, mark;                              /* the kernel writes these */
};

/* What a daemon needs to adopt a contract or account (layout.py knows the fields). User space alone writes it. */
struct label {
	__u64 word[8];
};

/* A neighbour's link: interface and MAC; the MAC is zero if the interface has none. A destination's key begins with
 * link and role, so one look-up finds neighbour and destination together. The MAC is kept in whole words of 4 bytes,
 * because the map's hash function reads whole words: the processor would have to wait for a word just written in
 * halves. */
struct link {
	__u32 ifindex;
	__u32 mac_head, mac_tail_role;                            /* the MAC's first four bytes; its last two, then the role */
};
struct neighbour {
	__u32 number, flags;
	__u32 flows, unused;                                      /* flows: how many flows it has begun, for flows.h */
	__u64 ready_ns;                                           /* a token bucket, for what is handed to the daemon */
	__u64 errors_ready_ns;                                    /* another, for ICMP errors to the neighbour */
	struct link first;                                        /* the neighbour's first link; zero: this link */
	__u32 unused_too;
};
struct host4 { struct link link; __u32 address[1]; };
struct host6 { struct link link; __u32 address[4]; };
struct prefix4 { __u32 bits, who, address[1]; };              /* who: number | role << 31; all its bits must match */
struct prefix6 { __u32 bits, who, address[4]; };
struct entry { __u32 slot, generation; };
#define OWN 0xffffffff                                        /* entry.slot: the neighbour's own address */

#define ELSEWHERE 4096                                        /* prefixes that a resold default route doesn't cover */

struct free4 { __u32 bits, address[1]; };
struct free6 { __u32 bits, address[4]; };
#define SERVICES 8
#define RATED 0x100                                           /* a payment service: has a rate; answers those who asked */
struct service { __be16 port; __u16 protocol; };              /* port 0: any; protocol 0: any transport with ports */
struct free_rule {
	__u32 all, services;
	struct service service[SERVICES];
};

/* A neighbour's uncharged access to payment services (lane.h). User space makes it; then only the kernel writes it. */
#define LANE_SETS 16
#define LANE_WAYS 4
#define STRANGERS_LANE 0
#define NEWCOMERS_LANE 0xffffffff
struct lane {
	__u64 ready_ns, bytes;
	__u64 unpaid_ready_ns, unused;                            /* the bucket of UNPAID_RATE (unpaid.h) */
	__u64 asked[LANE_SETS * LANE_WAYS];                       /* hashes of the conversations that may be answered */
};

/* The bytes of one address within a contract for several. */
struct inside { __u32 slot, generation, address[4]; };
struct host_bytes { __u64 to, from; };

struct contract_id { __u64 word[2]; };                       /* a label begins with it */

struct asked { __u32 number, address[4]; };
struct asking { __u64 since_ns, packets; };
struct early { __u64 first_ns, since_ns, packets, bytes; };  /* packets: in the window that began at since_ns */

/* Who began a flow (flows.h). An IPv4 address is the first word of each address. */
#define FLOWS_MOST (1 << 19)                                  /* flows of all payers; CONTRACTS_MAX may lower it */
struct flow { __u32 from[4], to[4]; __be16 from_port, to_port; __u32 protocol; };
struct place { __u32 payer, number; };
struct memory { struct place place; __u64 seen_ns; };

struct sent { struct link link; __u32 hash; };                /* names a packet whose destination may be rewritten */
struct our { __u32 v6, address[4]; };                         /* an address of this host */
#define MARK_WORDS 2
struct held { struct link link; __u32 source[4], mark[MARK_WORDS]; }; /* a held packet, as the daemon sees it too */
struct held_for { __u32 address[4]; };                        /* the address to which it was sent */

struct passage { __u32 ifindex; struct flow flow; };          /* a packet: where it came in, and which flow it answers */
struct returning { struct passage passage; struct link sender; __u32 left; }; /* left: has reached ngp_tc_out */
enum leader_of { AT_GATE, AT_EGRESS, LEADERS };
struct leader { __u32 ifindex, source[4], destination[4], number, is_return; }; /* the latest first fragment of a packet */
struct hint { __u32 kind, slot; __u64 tag; };
struct unbought { __u32 kind, number; __u64 v6; __u32 address[4]; }; /* the hint UNBOUGHT: what to buy, from whom */

#define TABLE(name, kind, key_type, value_type, entries, flags_) \
	struct { \
		__uint(type, BPF_MAP_TYPE_##kind); __type(key, key_type); __type(value, value_type); \
		__uint(max_entries, entries); __uint(map_flags, flags_); \
	} name SEC(".maps")

/* The loader sets the sizes of contracts, labels, hosts, prefixes, flows and places, from CONTRACTS_MAX. */
TABLE(ngp_config, ARRAY, __u32, struct config, 1, BPF_F_MMAPABLE);
TABLE(ngp_contracts, ARRAY, __u32, struct contract, 1, BPF_F_MMAPABLE);
TABLE(ngp_labels, ARRAY, __u32, struct label, 1, BPF_F_MMAPABLE);
TABLE(ngp_accounts, ARRAY, __u32, struct account, ACCOUNTS, BPF_F_MMAPABLE);
TABLE(ngp_identities, ARRAY, __u32, struct label, ACCOUNTS, BPF_F_MMAPABLE);
TABLE(ngp_hosts4, HASH, struct host4, struct entry, 1, BPF_F_NO_PREALLOC);
TABLE(ngp_hosts6, HASH, struct host6, struct entry, 1, BPF_F_NO_PREALLOC);
TABLE(ngp_prefixes4, LPM_TRIE, struct prefix4, struct entry, 1, BPF_F_NO_PREALLOC);
TABLE(ngp_prefixes6, LPM_TRIE, struct prefix6, struct entry, 1, BPF_F_NO_PREALLOC);
TABLE(ngp_neighbours, HASH, struct link, struct neighbour, 65536, BPF_F_NO_PREALLOC);
TABLE(ngp_interfaces, HASH, __u32, __u32, 4096, BPF_F_NO_PREALLOC);
TABLE(ngp_uppers, HASH, struct link, __u32, 4096, BPF_F_NO_PREALLOC); /* the mesh interface, and its macvlan's MAC */
TABLE(ngp_free4, LPM_TRIE, struct free4, struct free_rule, 65536, BPF_F_NO_PREALLOC);
TABLE(ngp_free6, LPM_TRIE, struct free6, struct free_rule, 65536, BPF_F_NO_PREALLOC);
TABLE(ngp_elsewhere4, LPM_TRIE, struct free4, __u32, ELSEWHERE, BPF_F_NO_PREALLOC); /* see covers_mesh */
TABLE(ngp_elsewhere6, LPM_TRIE, struct free6, __u32, ELSEWHERE, BPF_F_NO_PREALLOC);
TABLE(ngp_lanes, HASH, __u32, struct lane, 65536 + 2, BPF_F_NO_PREALLOC);
TABLE(ngp_inside, LRU_HASH, struct inside, struct host_bytes, 16384, 0);
TABLE(ngp_unsold, LRU_HASH, struct contract_id, __u64, 4096, 0); /* see count_unsold */
TABLE(ngp_asked, LRU_HASH, struct asked, struct asking, 16384, 0);
TABLE(ngp_early, LRU_HASH, struct asked, struct early, 4096, 0);
TABLE(ngp_strangers, ARRAY, __u32, __u64, 1, 0);
TABLE(ngp_flows, HASH, struct flow, struct memory, FLOWS_MOST, BPF_F_NO_PREALLOC);
TABLE(ngp_places, HASH, struct place, struct flow, FLOWS_MOST, BPF_F_NO_PREALLOC);
TABLE(ngp_sent, LRU_HASH, struct sent, struct flow, 16384, 0);
TABLE(ngp_ours, HASH, struct our, __u32, 4096, BPF_F_NO_PREALLOC);
TABLE(ngp_held_for, LRU_HASH, struct held, struct held_for, 8192, 0);
TABLE(ngp_returning, PERCPU_ARRAY, __u32, struct returning, 1, 0);
TABLE(ngp_leaders, PERCPU_ARRAY, __u32, struct leader, LEADERS, 0);
TABLE(ngp_waiting, LRU_HASH, struct passage, __u64, 4096, 0);
TABLE(ngp_counters, PERCPU_ARRAY, __u32, __u64, COUNTERS, 0);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} ngp_hints SEC(".maps");

#define INLINE static __always_inline
#define APART static __noinline                               /* seldom called: not inlined where each packet passes */
#define ONCE(word) (*(volatile __u64 *)&(word))

/* Join two halves into a word, in the order in which they are in memory. */
INLINE __u32 pair(__u16 first, __u16 second)
{
	union { __u16 half[2]; __u32 word; } both = { .half = { first, second } };

	return both.word;
}

INLINE const struct config *settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&ngp_config, &zero);
}

INLINE void count_by(__u32 which, __u64 number)
{
	__u64 *counter = bpf_map_lookup_elem(&ngp_counters, &which);

	if (counter)
		*counter += number;
}

INLINE void count(__u32 which)
{
	count_by(which, 1);
}

#endif
