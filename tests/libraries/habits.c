/* habits.c: the goldens of the campaign's habits (tests/campaign/habits.c), layers of ones, copies, constant
 * weights and the like, as bundles.
 *
 *     habits FOLDER        writes FOLDER/habit-NAME-LAYER.safetensors for each
 *
 * Their inputs are no case's own, so the bundles' cases have no input source.
 */
#include "etref/bundle.h"
#include "tests/campaign/campaign.h"

/* The habit's golden as a bundle that brings its inputs. */
static et_status write_golden(const et_case *c, const char *folder, et_error *error)
{
    char path[4096];
    cp_subject subject;
    et_status status = cp_subject_open(&subject, c, error);
    if (status != ET_OK) return status;
    subject.golden.c.input = (et_input){.source = ET_INPUT_NONE};
    snprintf(path, sizeof path, "%s/%s.safetensors", folder, c->name);
    status = et_bundle_write(path, &subject.golden, false, error);
    cp_subject_close(&subject);
    return status;
}

int main(int count, char **words)
{
    et_case c;
    et_error error = {.text = "usage: habits FOLDER"};
    et_status status = count == 2 ? ET_OK : ET_EINVAL;
    for (size_t i = 0; status == ET_OK && cp_habit_case(&c, i, &error); i++)
        status = write_golden(&c, words[1], &error);
    if (status != ET_OK) fprintf(stderr, "habits: %s\n", error.text);
    return status == ET_OK ? 0 : 2;
}
