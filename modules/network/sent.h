/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Sent to: the address to which a neighbour sent a packet, before this host rewrote the packet's destination.
 *
 * The contract is for the address that the client sent to. Where rules send all DNS to a resolver of ours, or forward a
 * port, FORWARD sees another address. So the ingress of a mesh interface notes each packet's flow in a table. It puts the
 * key to that note into the packet's own hash field, which nobody reads between there and FORWARD, and which stays with
 * the packet however long it is held and wherever it goes. A note per processor wouldn't do: a card hands over a list of
 * packets before the first of them reaches FORWARD. Nor would source and port as the key: a client may ask two resolvers
 * from one port.
 *
 * If no rule rewrites destinations (REWRITES isn't set), nothing of this is done.
 */
#ifndef NGP_SENT_H
#define NGP_SENT_H

#include "flows.h"

/* Read the flow of a packet itself. An ICMP error has no ports here: those that it quotes are another packet's. */
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

/* The hash is keyed with a secret. An attacker who could find two flows with one hash would send a packet to the internet,
 * and right behind it one to our own address, which costs nothing: the first would be taken for the second. */
INLINE __u32 hash_flow(const struct flow *flow)
{
	__u64 hash;

	if (!ONCE(sent_secret))                                   /* if two processors set it at once, some notes are lost */
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

/* The key holds the link, so no neighbour's packets overwrite another's notes. */
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

/* In FORWARD: put back the destination to which a packet was sent. Returns 0 if it was not rewritten. Not static: see
 * `serves`. */
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
