/* SPDX-License-Identifier: GPL-2.0-only
 *
 * The inlet: passes ngp's datagrams to the daemon, each with the link address of the frame in which it came.
 *
 *   udp_framed, udp_bare   filters of UDP sockets, on Ethernet and on layer-3 interfaces (tun, WireGuard, ipip)
 *   ethernet               filter of packet sockets
 *
 * A UDP socket shows its reader the sender's IP address, but not the frame; a filter on the socket still sees the
 * frame's header. So the filter writes both into one record of a ring buffer, and the socket's own queue stays empty:
 * no overflow can separate a datagram from its link address. When the filter runs, the kernel has already dealt with
 * the operator's INPUT rules, IP options, extension headers, fragments, VLAN tags, lengths and checksums.
 *
 * Floods end here, before they cost the daemon anything. Each link address that proved itself has a token bucket of its
 * own. All others (strangers) share one bucket. Before this shared bucket, a stranger must pass one of 1,024 smaller
 * buckets, picked by a secret hash of its address. So one flooding address empties its small bucket, but not the shared
 * one, and strangers need no entries in a table.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "../token.h"

#define INLINE static __always_inline
#define UDP_HEADER 8
#define UDP_MAX 1232                                          /* as udp.py */
#define ETHERNET_MAX 1280                                     /* as ethernet.py */
#define HOP_LIMIT 255

/* A trusted link address may send twice as much as a daemon can answer. If all that it sends is forged, checking the
 * signatures takes less than half a core, whatever number of identities the datagrams name. */
#define TRUSTED_INTERVAL_NS 400000ull                            /* 2,500 a second */
#define TRUSTED_BURST_NS (2048 * TRUSTED_INTERVAL_NS)
#define STRANGER_INTERVAL_NS 20000000ull                      /* 50 a second */
#define STRANGER_BURST_NS (50 * STRANGER_INTERVAL_NS)
#define STRANGERS_INTERVAL_NS 1000000ull                      /* 1,000 a second */
#define STRANGERS_BURST_NS (250 * STRANGERS_INTERVAL_NS)
#define STRANGER_BUCKETS_BITS 10

/* In the order of inlet.py's counters. */
enum counter { OWN, MALFORMED, OVERSIZED, NOT_FROM_LINK, TRUSTED_RATE, STRANGER_RATE, INLET_FULL, COUNTERS };

struct link { __u32 ifindex; __u8 mac[6], zero[2]; };
struct head { struct link link; __u16 length; __u8 version, zero, source[16]; };
struct arrival { struct head head; __u8 datagram[ETHERNET_MAX]; };

#define TABLE(name, kind, key_type, value_type, entries, flags_) \
	struct { \
		__uint(type, BPF_MAP_TYPE_##kind); __type(key, key_type); __type(value, value_type); \
		__uint(max_entries, entries); __uint(map_flags, flags_); \
	} name SEC(".maps")

TABLE(inlet_trusted, HASH, struct link, __u64, 4096, BPF_F_NO_PREALLOC);
TABLE(inlet_strange, ARRAY, __u32, __u64, 1 << STRANGER_BUCKETS_BITS, 0);
TABLE(inlet_shared, ARRAY, __u32, __u64, 2, 0);               /* the strangers' bucket; the hash's secret, an odd number */
TABLE(inlet_counts, PERCPU_ARRAY, __u32, __u64, COUNTERS, 0);
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);                 /* 3,000 datagrams */
} inlet_ring SEC(".maps");

/* Count why a datagram is dropped. Returns 0, as all programs do: the socket's own queue gets nothing. */
INLINE int drop(__u32 why)
{
	__u64 *counter = bpf_map_lookup_elem(&inlet_counts, &why);

	if (counter)
		++*counter;
	return 0;
}

/* Multiply-shift is a universal hash: without the secret nobody can find an address that shares a victim's bucket. */
INLINE int may_enter_as_stranger(const struct link *link, __u64 now)
{
	__u32 strangers = 0, secret = 1, bucket;
	__u64 *shared = bpf_map_lookup_elem(&inlet_shared, &strangers);
	__u64 *factor = bpf_map_lookup_elem(&inlet_shared, &secret), *own, address = link->ifindex;

	if (!shared || !factor)
		return 0;
	for (int i = 0; i < 6; i++)
		address = address << 8 | link->mac[i];
	bucket = address * *factor >> (64 - STRANGER_BUCKETS_BITS);
	own = bpf_map_lookup_elem(&inlet_strange, &bucket);
	return own && take_token(own, STRANGER_INTERVAL_NS, STRANGER_BURST_NS, now) &&
	       take_token(shared, STRANGERS_INTERVAL_NS, STRANGERS_BURST_NS, now);
}

/* Pass `length` bytes from offset `from` on, if the link address still has tokens. */
INLINE int take(struct __sk_buff *skb, struct head *head, __u32 from, __u32 length)
{
	__u64 now = bpf_ktime_get_ns(), *trusted = bpf_map_lookup_elem(&inlet_trusted, &head->link);
	struct arrival *arrival;
	__u32 last = length - 1;

	if (trusted ? !take_token(trusted, TRUSTED_INTERVAL_NS, TRUSTED_BURST_NS, now)
		    : !may_enter_as_stranger(&head->link, now))
		return drop(trusted ? TRUSTED_RATE : STRANGER_RATE);
	arrival = bpf_ringbuf_reserve(&inlet_ring, sizeof(*arrival), 0);
	if (!arrival)
		return drop(INLET_FULL);
	head->length = length;
	arrival->head = *head;
	asm volatile("" : "+r"(last));                        /* keeps one register for `last`: older verifiers need that */
	if (last >= ETHERNET_MAX || bpf_skb_load_bytes(skb, from, arrival->datagram, last + 1)) {
		bpf_ringbuf_discard(arrival, 0);
		return drop(MALFORMED);
	}
	bpf_ringbuf_submit(arrival, 0);
	return 0;
}

INLINE int udp(struct __sk_buff *skb, int framed)
{
	struct head head = {};
	__u32 length = skb->len - UDP_HEADER;
	__u8 hops = 0;
	int failed;

	if (skb->pkt_type == PACKET_LOOPBACK)                 /* Linux loops broadcasts back */
		return drop(OWN);
	if (skb->len <= UDP_HEADER)
		return drop(MALFORMED);
	if (length > UDP_MAX)
		return drop(OVERSIZED);
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		head.version = 4;
		failed = bpf_skb_load_bytes_relative(skb, 8, &hops, 1, BPF_HDR_START_NET) ||
			 bpf_skb_load_bytes_relative(skb, 12, head.source, 4, BPF_HDR_START_NET);
	} else {
		head.version = 6;
		failed = bpf_skb_load_bytes_relative(skb, 7, &hops, 1, BPF_HDR_START_NET) ||
			 bpf_skb_load_bytes_relative(skb, 8, head.source, 16, BPF_HDR_START_NET);
	}
	head.link.ifindex = skb->ifindex;
	if (framed)
		failed |= bpf_skb_load_bytes_relative(skb, 6, head.link.mac, 6, BPF_HDR_START_MAC) != 0;
	if (failed || (head.link.mac[0] & 1))                /* a group address can't be a sender */
		return drop(MALFORMED);
	if (hops != HOP_LIMIT)
		return drop(NOT_FROM_LINK);
	return take(skb, &head, UDP_HEADER, length);
}

SEC("socket")
int udp_framed(struct __sk_buff *skb)
{
	return udp(skb, 1);
}

SEC("socket")
int udp_bare(struct __sk_buff *skb)
{
	return udp(skb, 0);
}

/* Frames are padded to 60 bytes, so the datagram's length is sent before the datagram. */
SEC("socket")
int ethernet(struct __sk_buff *skb)
{
	struct head head = {};
	__be16 length_field;
	__u32 length, start = ETH_HLEN + sizeof(length_field);

	if (skb->pkt_type == PACKET_OUTGOING || skb->pkt_type == PACKET_OTHERHOST)
		return 0;
	if (bpf_skb_load_bytes(skb, ETH_ALEN, head.link.mac, ETH_ALEN) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN, &length_field, sizeof(length_field)))
		return drop(MALFORMED);
	length = bpf_ntohs(length_field);
	if (length > ETHERNET_MAX)
		return drop(OVERSIZED);
	if (length == 0 || start + length > skb->len || (head.link.mac[0] & 1))
		return drop(MALFORMED);
	head.link.ifindex = skb->ifindex;
	return take(skb, &head, start, length);
}

char _license[] SEC("license") = "GPL";
