/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Sent to: the address to which a neighbour sent a packet, before this host rewrote the packet's destination.
 *
 * A contract is for the address to which the client sent. Where rules redirect all DNS to a resolver of ours, or
 * forward a port, FORWARD sees another address. So the program at the ingress of a mesh interface stores each packet's
 * flow in a table (ngp_sent). The hash of that flow is a part of the entry's key. The program also writes it into the
 * packet's own hash field: nothing between ingress and FORWARD reads that field, and it stays with the packet, however
 * long the packet is held. At FORWARD the hash field thus leads to the entry.
 *
 * Simpler ways fail. One entry for each processor would be overwritten: a network card hands over a list of packets
 * before the first of them reaches FORWARD. Source address and port can't be the key: a client may ask two resolvers
 * from one port.
 *
 * If no rule rewrites destinations (REWRITES isn't set), nothing of this is done.
 */
#ifndef NGP_SENT_H
#define NGP_SENT_H

#include "flows.h"

/* Read a packet's own flow. An ICMP error has no ports in its own flow: the ports in it are those of the quoted
 * packet. */
APART int read_flow(struct __sk_buff *skb, const struct packet *p, struct flow *flow)
{
	__be16 ports[2] = {};

	read_ports(skb, p, ports);
	__builtin_memcpy(flow->from, p->source, 16);
	__builtin_memcpy(flow->to, p->destination, 16);
	flow->from_port = ports[0];
	flow->to_port = ports[1];
	flow->protocol = p->protocol | (__u32)p->v6 << 8;
	return 0;
}

static __u64 sent_secret;

/* Return the hash of a flow, keyed with a secret. An attacker who could find two flows with the same hash would send a
 * packet of the one to the internet, and right behind it a packet of the other to our own address, which costs nothing.
 * The second packet would overwrite the first one's entry, and the first would be taken for one to our own address. */
INLINE __u32 hash_flow(const struct flow *flow)
{
	__u64 hash;

	if (!ONCE(sent_secret))                                   /* if two processors set it at once, some entries are lost */
		ONCE(sent_secret) = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32() | 1;
	hash = mix(ONCE(sent_secret) ^ flow->protocol, (__u64)flow->from_port << 16 | flow->to_port);

	for (int i = 0; i < 4; i++)
		hash = mix(hash, (__u64)flow->from[i] << 32 | flow->to[i]);
	return mix(hash, ONCE(sent_secret)) >> 32 | 1;             /* 0 means: no hash */
}

INLINE int same_flow(const struct flow *one, const struct flow *two)
{
	const __u32 *a = (const __u32 *)one, *b = (const __u32 *)two;

	for (int i = 0; i < sizeof(*one) / 4; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

/* Store the flow of a packet as it was sent. The link is a part of the key, so no neighbour's packets overwrite another
 * neighbour's entries. */
APART int note_sent(struct __sk_buff *skb, const struct packet *p)
{
	struct sent key = { .link = p->link };
	struct flow flow = {}, *noted;

	read_flow(skb, p, &flow);
	key.hash = hash_flow(&flow);
	bpf_set_hash(skb, key.hash);
	noted = bpf_map_lookup_elem(&ngp_sent, &key);
	if (!noted || !same_flow(noted, &flow))
		bpf_map_update_elem(&ngp_sent, &key, &flow, BPF_ANY);
	return 0;
}

/* In FORWARD: put the destination to which a packet was sent back into `p`. Returns 0 if the destination was not
 * rewritten. Not static: see `serves`. */
__noinline int restore_sent(struct __sk_buff *skb, struct packet *p)
{
	struct sent key = { .hash = skb->hash };
	struct flow *noted, now = {};

	if (!p)
		return 0;
	key.link = p->link;
	noted = bpf_map_lookup_elem(&ngp_sent, &key);
	if (!noted)
		return 0;
	read_flow(skb, p, &now);
	for (int i = 0; i < 4; i++)
		if (noted->from[i] != now.from[i])
			return 0;
	if (noted->protocol != now.protocol || noted->from_port != now.from_port || same_flow(noted, &now))
		return 0;
	__builtin_memcpy(p->destination, noted->to, 16);
	p->sent_port = noted->to_port;
	return 1;
}

INLINE int is_ours(const struct packet *p, const __u32 *address)
{
	struct our key = { .v6 = p->v6 };

	__builtin_memcpy(key.address, address, 16);
	return bpf_map_lookup_elem(&ngp_ours, &key) != 0;
}

#endif
