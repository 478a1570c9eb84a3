/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Sent to: where a neighbour sent a packet whose destination this host has rewritten.
 *
 * The contract is for the address that the client sent to. Where DNS is forced to a resolver of ours, or a port is
 * forwarded, FORWARD sees another one. So the ingress of a mesh interface notes each packet's flow in a table, and the key to
 * it in the packet's own hash, which nobody looks at between there and FORWARD, and which goes with the packet however long
 * it is held and wherever it goes on. A slot of the processor wouldn't do: a card hands over a list of packets before
 * the first of them reaches FORWARD. Neither would a key of source and port: two resolvers may be asked from one port.
 *
 * Where no rule rewrites destinations (no REWRITES) nothing of this is done.
 */
#ifndef NGP_SENT_H
#define NGP_SENT_H

#include "flows.h"

/* An error's ports are of what it quotes; here it is a packet like others. */
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

/* With a secret: who could find two flows of one key would have a packet to the internet taken for the other one, which it
 * sends to our own address right behind it, and which costs nothing. */
INLINE __u32 hash_flow(const struct flow *flow)
{
	__u64 hash;

	if (!ONCE(sent_secret))                                   /* two processors at once: some first notes aren't found */
		ONCE(sent_secret) = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32() | 1;
	hash = mix(ONCE(sent_secret) ^ flow->protocol, (__u64)flow->from_port << 16 | flow->to_port);

	for (int i = 0; i < 4; i++)
		hash = mix(hash, (__u64)flow->from[i] << 32 | flow->to[i]);
	return mix(hash, ONCE(sent_secret)) >> 32 | 1;             /* 0: there is none */
}

INLINE int same_flow(const struct flow *one, const struct flow *two)
{
	const __u32 *a = (const __u32 *)one, *b = (const __u32 *)two;

	for (int i = 0; i < sizeof(*one) / 4; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

/* The key holds the link: nobody's packets take the place of another's. */
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

/* In FORWARD: take a packet as it was sent. Returns 0 where its destination is still the same. Not static, as
 * matches_free. */
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
