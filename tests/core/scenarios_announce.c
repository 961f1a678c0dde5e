/* As scenarios.c, of what wakes the sender and when.
 *
 *   scenarios_announce NAME
 */
#include "scenario.h"

static void fall_asleep(uint64_t for_us) {
    while (was_woken()) {
    }
    CHECK(mp_sleep_begin(&sender, (uint64_t)mp_now_ns() / 1000 + for_us));
}

static void is_marked_and_woke_nobody(void) {
    CHECK(!was_woken());
    CHECK(atomic_load(&sender.region.dirty[0]) == 1);
}

static void the_sender_is_woken_behind_the_first_commit_of_a_batch(void) {
    struct mp_place place;
    open_pool(4, 100000);
    for (int step = 17; step <= 18; step++) { /* before the commit, and behind it */
        fall_asleep(1000000);
        stop_at(step, is_marked_and_woke_nobody);
        CHECK(put(0, 0, 10, &place) == MP_DONE && place.index == 0 && at_step == 0);
        CHECK(was_woken() && mp_take_dirty(&sender, 0) == 1);
        uint32_t slot;
        CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    }
    fall_asleep(500); /* the linger is 1 ms: it wakes by itself before */
    CHECK(put(0, 0, 10, &place) == MP_DONE && place.index == 0 && !was_woken());
}

static void a_run_is_in_its_new_batch_before_the_sender_is_woken(void) {
    static uint8_t value[60000];
    struct mp_record record[3];
    const struct mp_record *list[3];
    struct mp_value values[3];
    for (int i = 0; i < 3; i++) {
        record[i] = (struct mp_record){.value = value, .value_bytes = i == 2 ? 60000 : 100,
                                       .key_bytes = -1, .timestamp_ms = 1000 + i};
        list[i] = &record[i];
        values[i] = (struct mp_value){.data = value, .bytes = record[i].value_bytes};
    }
    struct mp_place place;
    open_pool(8, 50000);
    for (int plain = 0; plain < 2; plain++)
        for (uint32_t count = 2; count <= 3; count++) { /* the third has no room beside them */
            fall_asleep(1000000);
            stop_at(13, is_marked_and_woke_nobody);
            CHECK((plain ? mp_append_values(&writer[0], 0, values, count, 1000, 0, &place)
                         : mp_append_run(&writer[0], 0, list, count, 0, &place)) == MP_DONE);
            CHECK(at_step == 0 && place.index == 0 && place.count == 2 && place.bytes > 200);
            CHECK(was_woken() && mp_take_dirty(&sender, 0) == 1);
            uint32_t slot;
            CHECK(take(0, &slot) == 2 && mp_release(&sender, slot));
        }
    list[1] = list[2];
    values[1] = values[2];
    for (int plain = 0; plain < 2; plain++) { /* the second has no room beside the first */
        fall_asleep(1000000);
        CHECK((plain ? mp_append_values(&writer[0], 0, values, 2, 1000, 0, &place)
                     : mp_append_run(&writer[0], 0, list, 2, 0, &place)) == MP_DONE);
        CHECK(place.count == 1 && place.sealed_count == 1 && mp_filled_batch(&place));
        CHECK(was_woken() && mp_take_dirty(&sender, 0) == 1);
        uint32_t slot;
        CHECK(take(0, &slot) == 1 && mp_release(&sender, slot));
    }
    check_all_free(8);
}

static void other_adds_and_wakes_the_sender(void) {
    struct mp_place place;
    CHECK(!was_woken());
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.index == 1);
    CHECK(was_woken());
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.index == 2);
    CHECK(!was_woken()); /* once is enough */
}

static void who_adds_to_the_batch_of_a_stopped_opener_wakes_the_sender(void) {
    struct mp_place place;
    open_pool(4, 100000);
    fall_asleep(1000000);
    stop_at(18, other_adds_and_wakes_the_sender);
    CHECK(put(0, 0, 10, &place) == MP_DONE && at_step == 0);
    CHECK(take(0, NULL) == 3);
}

static void other_adds_and_wakes_nobody(void) {
    struct mp_place place;
    CHECK(put(1, 0, 10, &place) == MP_DONE && place.index == 1);
    CHECK(!was_woken());
}

static void look_before_its_first_record(void) { CHECK(mp_take_dirty(&sender, 0) == 2); }

static void who_adds_to_a_batch_that_will_be_looked_at_wakes_nobody(void) {
    struct mp_place place;
    open_pool(4, 100000);
    fall_asleep(500); /* before the batch is due */
    stop_at(18, other_adds_and_wakes_nobody);
    CHECK(put(0, 0, 10, &place) == MP_DONE && at_step == 0);
    CHECK(take(0, NULL) == 2 && mp_take_dirty(&sender, 0) == 1);
    mp_sleep_end(&sender);
    stop_at(17, look_before_its_first_record);
    CHECK(put(0, 1, 10, &place) == MP_DONE && at_step == 0);
    fall_asleep(1000000); /* the mark was taken */
    CHECK(put(1, 1, 10, &place) == MP_DONE && place.index == 1 && !was_woken());
}

static const struct scenario scenarios[] = {
    SCENARIO(the_sender_is_woken_behind_the_first_commit_of_a_batch),
    SCENARIO(a_run_is_in_its_new_batch_before_the_sender_is_woken),
    SCENARIO(who_adds_to_the_batch_of_a_stopped_opener_wakes_the_sender),
    SCENARIO(who_adds_to_a_batch_that_will_be_looked_at_wakes_nobody),
};

int main(int argc, char **argv) {
    return run_scenario(scenarios, sizeof scenarios / sizeof *scenarios, argc, argv);
}
