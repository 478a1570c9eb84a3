/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Free traffic: FREE_DESTINATIONS, and when a packet's addresses can be trusted. PAYMENT_SERVICES are in the same tables, so
 * one look-up serves both; lane.h decides what becomes of their packets.
 *
 * A packet is free by its destination. It is free by its source only where a forged source gains nothing. So a client's
 * upload to the internet isn't free because it names a free destination as its source, or quotes one in an ICMP error. A
 * download from the internet isn't free because the client's own address is within a free prefix. An ICMP error is free if
 * the connection that it quotes is free.
 */
#ifndef NGP_FREE_H
#define NGP_FREE_H

#include "packet.h"

/* What a look-up can find: free by destination or by source; to a payment service, or from one. */
#define BY_DESTINATION 1
#define BY_SOURCE 2
#define TO_SERVICE 4
#define FROM_SERVICE 8
#define AS_FREE (BY_DESTINATION | BY_SOURCE)
#define AS_SERVICE (TO_SERVICE | FROM_SERVICE)

/* Say what a rule makes of a port: a set of AS_FREE and AS_SERVICE. Not static, so that the verifier checks the function
 * once, and not again for each call with all that it knows there. The price: the verifier assumes that arguments may be
 * null. */
__noinline int serves(const struct free_rule *rule, __u32 protocol, __u32 port)
{
	int found = 0;

	if (!rule)
		return 0;
	if (rule->all)
		found = AS_FREE;
	for (__u32 i = 0; i < SERVICES; i++) {
		__u32 offered = rule->service[i].protocol, spoken = offered & ~RATED;

		if (i >= rule->services)
			break;
		if ((!spoken || spoken == protocol) && (!rule->service[i].port || rule->service[i].port == port))
			found |= offered & RATED ? AS_SERVICE : AS_FREE;
	}
	return found;
}

INLINE struct free_rule *free_rule(const struct packet *p, const __u32 *address)
{
	if (p->v6) {
		struct free6 key = { .bits = 128 };

		__builtin_memcpy(key.address, address, 16);
		return bpf_map_lookup_elem(&ngp_free6, &key);
	} else {
		struct free4 key = { .bits = 32, .address = { address[0] } };

		return bpf_map_lookup_elem(&ngp_free4, &key);
	}
}

/* Say which of `wanted` apply to a packet. Not static: see `serves`. (When it was static, it took most of the second that
 * loading lasted.) */
__noinline int matches_free(struct __sk_buff *skb, const struct packet *p, int wanted)
{
	int to = wanted & (BY_DESTINATION | TO_SERVICE), from = wanted & (BY_SOURCE | FROM_SERVICE), found = 0;
	__be16 ports[2] = {};
	struct free_rule *rule;

	if (!p)
		return 0;
	read_ports(skb, p, ports);
	if (to) {
		rule = free_rule(p, p->destination);
		if (rule)
			found = to & serves(rule, p->protocol, ports[1]);
		if (rule && p->error)
			found |= to & serves(rule, p->quoted_protocol, p->quoted_ports[0]);
	}
	if (found || !from)
		return found;
	rule = free_rule(p, p->source);
	if (rule)
		found = from & serves(rule, p->protocol, ports[0]);
	if (found || !p->error)
		return found;
	rule = free_rule(p, p->quoted);
	return rule ? from & serves(rule, p->quoted_protocol, p->quoted_ports[1]) : 0;
}

INLINE int any_free(const struct config *config, const struct packet *p)
{
	return config->flags & (p->v6 ? FREE6 : FREE4);
}

INLINE int any_given(const struct config *config, const struct packet *p)
{
	return any_free(config, p) || (config->flags & OFFERS(p->v6));
}

INLINE int is_free(struct __sk_buff *skb, const struct config *config, const struct packet *p, int by)
{
	return any_free(config, p) && matches_free(skb, p, by);
}

/* To a client a packet is free by its source; from the mesh or a LAN a packet is free by its destination. */
APART int free_by(const struct packet *p, __u32 ingress_ifindex)
{
	__u32 *interface = bpf_map_lookup_elem(&ngp_interfaces, &ingress_ifindex);
	struct neighbour *neighbour = find_neighbour(p);
	int by = !neighbour || (neighbour->flags & BUYS_FROM_US) ? BY_SOURCE : 0;

	return interface && (*interface & (MESH | LAN)) ? by | BY_DESTINATION : by;
}

#endif
