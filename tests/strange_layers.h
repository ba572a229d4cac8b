/* strange_layers.h: layers that nobody chose, on which an honest kernel was rejected until its errors were
 * understood. What it was stands before each. */
#ifndef ETREF_TESTS_STRANGE_LAYERS_H
#define ETREF_TESTS_STRANGE_LAYERS_H

static const struct {
    const char *json, *profile, *kernel;
} strange_layers[] = {
    /* parallel inputs: the rounded weights err alike for all tokens */
    {"{'name':'strange-14','rule':'ec','tokens':276,'d_model':5,'d_expert':97,"
     "'experts':1,'gate':'relu','norm':'none','shared':true,'shared_d_expert':17,"
     "'mode':'eval','target_load':39,'pool_tokens':276,'threshold':'inclusive',"
     "'ema_decay':0.9,'ema_updates':2,'precision':'f64','input':{'source':'skewed',"
     "'seed':14,'mean':-1,'hot':0}}",
     "bf16", "blocked"},
    /* sums of three products */
    {"{'name':'strange-21','rule':'et','tokens':291,'d_model':3,'d_expert':131,"
     "'experts':1,'micro_batches':3,'gate':'softmax_anchor_out','norm':'fanout',"
     "'shared':true,'mode':'train','pool_tokens':97,'threshold':'strict','ema_decay':0,"
     "'ema_updates':885,'capacity_factor':0.25,'precision':'bf16',"
     "'input':{'source':'normal','seed':21}}",
     "tf32", "blocked"},
    /* norm sum: all gates of a token vanish */
    {"{'name':'strange-55','rule':'tc','tokens':374,'d_model':11,'d_expert':21,"
     "'experts':2,'micro_batches':2,'gate':'softmax_anchor_out','norm':'sum',"
     "'shared':true,'mode':'train','top_k':2,'balance':'none','z_loss_coef':0.1,"
     "'precision':'f64','input':{'source':'outlier','seed':55,'mean':2}}",
     "f32", "blocked"},
    /* truncated logits, far from 0 */
    {"{'name':'strange-58','rule':'tc','tokens':12,'d_model':66,'d_expert':68,"
     "'experts':23,'gate':'softmax_anchor','norm':'none','shared':true,'mode':'train',"
     "'top_k':6,'balance':'aux_error','balance_coef':0.3,'precision':'f64',"
     "'input':{'source':'skewed','seed':58,'mean':2,'hot':16}}",
     "tf32-rz", "blocked"},
    /* a sum of gates whose square underflows */
    {"{'name':'strange-70','rule':'ec','tokens':152,'d_model':125,'d_expert':21,"
     "'experts':16,'gate':'softmax_anchor','norm':'sum','shared':true,"
     "'shared_d_expert':2,'mode':'train','pool_tokens':152,'threshold':'inclusive',"
     "'ema_decay':0.99,'ema_updates':278,'ema_bias_correction':true,'precision':'f64',"
     "'input':{'source':'huge','seed':70}}",
     "f64", "blocked"},
    /* sigmoids of logits that err by more than they are */
    {"{'name':'strange-73','rule':'ec','tokens':329,'d_model':101,'d_expert':117,"
     "'experts':37,'gate':'sigmoid','norm':'none','shared':false,'mode':'eval',"
     "'target_load':43,'pool_tokens':329,'threshold':'inclusive','ema_decay':0.9,"
     "'ema_updates':81,'ema_bias_correction':true,'precision':'f32',"
     "'input':{'source':'huge','seed':73}}",
     "bf16", "blocked"},
    /* truncated logits under a softmax */
    {"{'name':'strange-102','rule':'et','tokens':441,'d_model':57,'d_expert':153,"
     "'experts':23,'micro_batches':3,'gate':'softmax_anchor','norm':'sum',"
     "'shared':true,'mode':'train','pool_tokens':147,'threshold':'strict',"
     "'ema_decay':0,'ema_updates':1,'ema_bias_correction':true,'precision':'f64',"
     "'input':{'source':'skewed','seed':102,'router_mean':-2,'hot':2}}",
     "tf32-rz", "blocked"},
    /* weights far below the smallest normal number */
    {"{'name':'strange-104','rule':'tc','tokens':309,'d_model':84,'d_expert':9,"
     "'experts':12,'micro_batches':3,'gate':'sigmoid','norm':'none','shared':true,"
     "'shared_d_expert':21,'mode':'eval','top_k':3,'balance':'proportional',"
     "'bias_rate':0.1,'precision':'bf16','input':{'source':'huge','seed':104}}",
     "f32", "blocked"},
    /* partial sums far above the sum */
    {"{'name':'strange-120','rule':'ec','tokens':391,'d_model':15,'d_expert':25,"
     "'experts':4,'gate':'sigmoid','norm':'none','shared':true,'shared_d_expert':3,"
     "'mode':'train','pool_tokens':391,'threshold':'strict','ema_decay':0.99,"
     "'ema_updates':1,'ema_bias_correction':true,'precision':'f16',"
     "'input':{'source':'text','seed':120}}",
     "tf32", "blocked"},
    /* z-loss of tokens that err alike */
    {"{'name':'strange-130','rule':'tc','tokens':308,'d_model':2,'d_expert':1,"
     "'experts':1,'micro_batches':2,'gate':'relu','norm':'sum','shared':true,"
     "'shared_d_expert':3,'mode':'train','top_k':1,'balance':'none','z_loss_coef':0.1,"
     "'precision':'f16','input':{'source':'normal','seed':130}}",
     "bf16-low", "blocked"},
    /* z-loss: a logit far below that comes up */
    {"{'name':'strange-147','rule':'et','tokens':40,'d_model':28,'d_expert':4,"
     "'experts':25,'gate':'sigmoid','norm':'none','shared':true,'mode':'train',"
     "'target_load':34,'pool_tokens':40,'threshold':'inclusive','ema_decay':0,"
     "'ema_updates':0,'z_loss_coef':0.1,'precision':'f32','input':{'source':'huge',"
     "'seed':147}}",
     "bf16", "blocked"},
    /* norm sum of uncertain gates */
    {"{'name':'strange-179','rule':'tc','tokens':580,'d_model':9,'d_expert':4,"
     "'experts':8,'micro_batches':2,'gate':'softmax','norm':'sum','shared':true,"
     "'shared_d_expert':28,'mode':'train','top_k':3,'balance':'proportional',"
     "'bias_rate':0.01,'z_loss_coef':0.001,'precision':'f32','input':{'source':'huge',"
     "'seed':179}}",
     "bf16", "blocked"},
    /* dr beyond the range of operands */
    {"{'name':'strange-213','rule':'tc','tokens':79,'d_model':174,'d_expert':40,"
     "'experts':2,'gate':'softmax_anchor_out','norm':'none','shared':true,"
     "'mode':'train','top_k':2,'balance':'aux_error','balance_coef':0.01,"
     "'precision':'f32','input':{'source':'outlier','seed':213}}",
     "f16", "blocked"},
    /* dr that is the same for all tokens */
    {"{'name':'strange-258','rule':'tc','tokens':249,'d_model':37,'d_expert':1,"
     "'experts':5,'micro_batches':3,'gate':'sigmoid','norm':'fanout','shared':true,"
     "'mode':'train','top_k':5,'balance':'none','z_loss_coef':0.1,'precision':'f16',"
     "'input':{'source':'tiny','seed':258}}",
     "tf32", "blocked"},
    /* dw that is nothing but noise */
    {"{'name':'strange-398','rule':'tc','tokens':116,'d_model':5,'d_expert':15,"
     "'experts':9,'gate':'softmax_anchor_out','norm':'sum','shared':true,"
     "'mode':'train','top_k':2,'balance':'proportional','bias_rate':0.01,"
     "'precision':'bf16','input':{'source':'tiny','seed':398,'mean':2,"
     "'router_mean':4}}",
     "f16", "blocked"},
    /* softmax over tokens and norm sum */
    {"{'name':'strange-521','rule':'et','tokens':52,'d_model':5,'d_expert':3,"
     "'experts':2,'gate':'softmax_tokens','norm':'sum','shared':false,'mode':'train',"
     "'pool_tokens':52,'threshold':'inclusive','ema_decay':0.999,'ema_updates':323,"
     "'precision':'bf16','input':{'source':'normal','seed':521,'mean':0.5}}",
     "tf32", "blocked"},
    /* dr below the smallest operand */
    {"{'name':'strange-661','rule':'tc','tokens':4,'d_model':71,'d_expert':6,"
     "'experts':22,'gate':'softmax','norm':'fanout','shared':false,'mode':'train',"
     "'top_k':4,'balance':'aux','balance_coef':0.01,'global_load':true,"
     "'precision':'bf16','input':{'source':'tiny','seed':661}}",
     "f16", "blocked"},
    /* dO between two numbers of the format */
    {"{'name':'strange-1082','rule':'et','tokens':9,'d_model':47,'d_expert':92,"
     "'experts':4,'micro_batches':3,'gate':'softmax_anchor','norm':'sum','shared':true,"
     "'shared_d_expert':2,'mode':'train','target_load':2,'pool_tokens':3,"
     "'threshold':'inclusive','ema_decay':0.99,'ema_updates':2,"
     "'ema_bias_correction':true,'capacity_factor':3,'precision':'f16',"
     "'input':{'source':'ties','seed':1082,'mean':0.5}}",
     "bf16", "blocked"},
    /* subnormal dO */
    {"{'name':'strange-1122','rule':'tc','tokens':366,'d_model':9,'d_expert':59,"
     "'experts':13,'micro_batches':2,'gate':'softmax_anchor_out','norm':'fanout',"
     "'shared':true,'mode':'train','top_k':1,'balance':'aux','balance_coef':0.01,"
     "'precision':'f16','input':{'source':'tiny','seed':1122,'router_mean':4}}",
     "f16", "blocked"},
    /* the mean of exact cutoffs */
    {"{'name':'strange-1347','rule':'et','tokens':3,'d_model':16,'d_expert':1,"
     "'experts':7,'micro_batches':3,'gate':'softmax','norm':'fanout','shared':true,"
     "'mode':'train','target_load':1,'pool_tokens':1,'threshold':'inclusive',"
     "'ema_decay':0,'ema_updates':3,'ema_bias_correction':true,'capacity_factor':1,"
     "'warmup_steps':10,'step':2,'z_loss_coef':0.001,'precision':'bf16',"
     "'input':{'source':'skewed','seed':1347,'mean':0.5,'hot':4}}",
     "bf16", "blocked"},
    /* all experts round dr alike */
    {"{'name':'strange-1418','rule':'et','tokens':223,'d_model':16,'d_expert':178,"
     "'experts':35,'gate':'softmax','norm':'none','shared':true,'shared_d_expert':24,"
     "'mode':'train','pool_tokens':223,'threshold':'inclusive','ema_decay':0.9,"
     "'ema_updates':3,'z_loss_coef':0.001,'precision':'f32','input':{'source':'tiny',"
     "'seed':1418,'mean':-1,'router_mean':-2}}",
     "bf16", "blocked"},
    /* dx through an uncertain softmax */
    {"{'name':'strange-1918','rule':'ec','tokens':386,'d_model':59,'d_expert':9,"
     "'experts':3,'gate':'softmax_anchor','norm':'none','shared':true,"
     "'shared_d_expert':25,'mode':'train','target_load':18,'pool_tokens':386,"
     "'threshold':'strict','ema_decay':0,'ema_updates':0,'ema_bias_correction':true,"
     "'z_loss_coef':0.001,'precision':'f64','input':{'source':'huge','seed':1918,"
     "'mean':0.5}}",
     "bf16", "all-in-one"},
    /* lse near 0 */
    {"{'name':'strange-2005','rule':'tc','tokens':212,'d_model':3,'d_expert':1,"
     "'experts':19,'gate':'sigmoid','norm':'none','shared':false,'mode':'train',"
     "'top_k':1,'balance':'proportional','bias_rate':0.1,'global_load':true,"
     "'z_loss_coef':0.1,'precision':'f16','input':{'source':'normal','seed':2005,"
     "'router_mean':4}}",
     "bf16", "all-in-one"},
    /* what one gate gains another loses */
    {"{'name':'strange-2332','rule':'ec','tokens':95,'d_model':2,'d_expert':6,"
     "'experts':25,'gate':'softmax_anchor','norm':'fanout','shared':false,"
     "'mode':'eval','target_load':18,'pool_tokens':95,'threshold':'strict',"
     "'ema_decay':0.9,'ema_updates':0,'ema_bias_correction':true,'precision':'f32',"
     "'input':{'source':'huge','seed':2332,'router_mean':4}}",
     "bf16", "all-in-one"},
    /* two uncertain factors */
    {"{'name':'strange-2348','rule':'et','tokens':338,'d_model':3,'d_expert':48,"
     "'experts':10,'gate':'softmax_anchor_out','norm':'fanout','shared':false,"
     "'mode':'train','pool_tokens':338,'threshold':'inclusive','ema_decay':0.9,"
     "'ema_updates':146,'capacity_factor':0,'z_loss_coef':0.001,'precision':'f64',"
     "'input':{'source':'huge','seed':2348}}",
     "bf16", "all-in-one"},
    /* squares that underflow */
    {"{'name':'strange-3135','rule':'et','tokens':52,'d_model':34,'d_expert':5,"
     "'experts':38,'gate':'sigmoid','norm':'none','shared':true,'shared_d_expert':1,"
     "'mode':'train','target_load':35,'pool_tokens':52,'threshold':'inclusive',"
     "'ema_decay':0,'ema_updates':219,'ema_bias_correction':true,'precision':'f64',"
     "'input':{'source':'huge','seed':3135,'mean':2}}",
     "f64", "all-in-one"},
    /* dW_r of nearly equal tokens */
    {"{'name':'strange-4333','rule':'ec','tokens':976,'d_model':49,'d_expert':11,"
     "'experts':1,'micro_batches':2,'gate':'relu','norm':'none','shared':true,"
     "'mode':'train','pool_tokens':488,'threshold':'strict','ema_decay':0,"
     "'ema_updates':671,'z_loss_coef':0.001,'precision':'f16','input':{'source':'ties',"
     "'seed':4333,'mean':2,'router_mean':-2,'copies':5,'jitter':0.001}}",
     "f32", "reversed"},
    /* softmax over tokens: one D for all */
    {"{'name':'strange-4836','rule':'et','tokens':83,'d_model':4,'d_expert':1,"
     "'experts':34,'gate':'softmax_tokens','norm':'none','shared':true,'mode':'eval',"
     "'target_load':23,'pool_tokens':83,'threshold':'strict','ema_decay':0,"
     "'ema_updates':0,'ema_bias_correction':true,'z_loss_coef':0.001,'precision':'f16',"
     "'input':{'source':'skewed','seed':4836,'hot':7}}",
     "bf16", "all-in-one"},
    /* dW_r of parallel tokens */
    {"{'name':'strange-5156','rule':'tc','tokens':361,'d_model':125,'d_expert':41,"
     "'experts':6,'gate':'sigmoid','norm':'none','shared':true,'shared_d_expert':4,"
     "'mode':'train','top_k':6,'balance':'aux_error','balance_coef':0.01,"
     "'global_load':true,'precision':'bf16','input':{'source':'skewed','seed':5156,"
     "'mean':0.5,'router_mean':4,'hot':2}}",
     "bf16-low", "online"},
    /* softmax over tokens: dx of slots that weigh nothing */
    {"{'name':'strange-5587','rule':'ec','tokens':45,'d_model':91,'d_expert':153,"
     "'experts':3,'gate':'softmax_tokens','norm':'fanout','shared':false,"
     "'mode':'train','target_load':19,'pool_tokens':45,'threshold':'inclusive',"
     "'ema_decay':0,'ema_updates':1,'ema_bias_correction':true,'precision':'bf16',"
     "'input':{'source':'outlier','seed':5587}}",
     "bf16", "reversed"},
    /* a small shared expert */
    {"{'name':'strange-5895','rule':'tc','tokens':396,'d_model':36,'d_expert':112,"
     "'experts':2,'gate':'sigmoid','norm':'none','shared':true,'shared_d_expert':10,"
     "'mode':'train','top_k':2,'balance':'none','precision':'bf16',"
     "'input':{'source':'skewed','seed':5895,'hot':1}}",
     "f16", "blocked"},
    /* dx of tokens with the same dr */
    {"{'name':'strange-6150','rule':'ec','tokens':816,'d_model':105,'d_expert':6,"
     "'experts':19,'gate':'sigmoid','norm':'none','shared':true,'mode':'train',"
     "'target_load':31,'pool_tokens':408,'threshold':'inclusive','ema_decay':0.9,"
     "'ema_updates':604,'z_loss_coef':0.1,'precision':'bf16','input':{'source':'tiny',"
     "'seed':6150,'router_mean':4}}",
     "bf16", "reversed"},
    /* equal gates round alike */
    {"{'name':'strange-6304','rule':'tc','tokens':129,'d_model':180,'d_expert':11,"
     "'experts':2,'gate':'softmax_anchor','norm':'sum','shared':true,'mode':'train',"
     "'top_k':2,'balance':'aux','balance_coef':0.01,'precision':'f16',"
     "'input':{'source':'tiny','seed':6304,'router_mean':-2}}",
     "bf16-low", "wide-router"},
    /* few directions: logits err together */
    {"{'name':'strange-6663','rule':'et','tokens':131,'d_model':2,'d_expert':3,"
     "'experts':24,'gate':'softmax_anchor','norm':'none','shared':true,'mode':'train',"
     "'pool_tokens':131,'threshold':'strict','ema_decay':0.9,'ema_updates':1,"
     "'ema_bias_correction':true,'precision':'f64','input':{'source':'normal',"
     "'seed':6663,'mean':0.5,'router_mean':4}}",
     "f16", "reversed"},
    /* a saturated sigmoid, whose slope is still a number and errs with its logit */
    {"{'name':'strange-339','rule':'tc','tokens':258,'d_model':3,'d_expert':8,"
     "'experts':31,'gate':'sigmoid','norm':'fanout','shared':true,'mode':'train',"
     "'top_k':6,'balance':'aux_error','balance_coef':0.3,'precision':'f32',"
     "'input':{'source':'huge','seed':339}}",
     "bf16", "atomic"},
    /* nearly equal gates are all rounded to the same side, and dr with them */
    {"{'name':'strange-895','rule':'tc','tokens':16,'d_model':16,'d_expert':53,"
     "'experts':3,'gate':'softmax','norm':'fanout','shared':false,'top_k':1,"
     "'micro_batches':2,'balance':'aux_error','balance_coef':0.3,'precision':'bf16',"
     "'input':{'source':'tiny','seed':895}}",
     "bf16-low", "tree"},
    {"{'name':'alike-ec','rule':'ec','tokens':8192,'d_model':16,'d_expert':16,"
     "'experts':13,'pool_tokens':8192,'gate':'softmax','precision':'bf16',"
     "'input':{'source':'tiny','seed':5}}",
     "bf16-low", "wide"},
    /* and so is a sum that grows by them */
    {"{'name':'alike-tc','rule':'tc','tokens':8192,'d_model':16,'d_expert':16,"
     "'experts':13,'top_k':2,'balance':'aux','balance_coef':0.1,'gate':'softmax',"
     "'precision':'bf16','input':{'source':'tiny','seed':5}}",
     "f32", "tree"},
    {"{'name':'alike-tokens','rule':'ec','tokens':6000,'d_model':16,'d_expert':16,"
     "'experts':7,'pool_tokens':3000,'micro_batches':2,'gate':'softmax_tokens',"
     "'precision':'bf16','input':{'source':'tiny','seed':5}}",
     "f32", "fused"},
    /* dr of a z-loss, as an operand: the same for all experts, whose weights cancel in a column of dx */
    {"{'name':'alike-anchor','rule':'ec','tokens':8192,'d_model':16,'d_expert':16,"
     "'experts':8,'pool_tokens':8192,'gate':'softmax_anchor','norm':'fanout',"
     "'z_loss_coef':0.1,'precision':'bf16','input':{'source':'tiny','seed':5}}",
     "bf16", "tree"},
    /* a stage's zeros are no numbers without error: half of the hidden units are off */
    {"{'name':'habit-masked-0','layer':'dense','tokens':384,'d_model':64,'d_expert':192,"
     "'precision':'f32','input':{'source':'normal','seed':45}}",
     "bf16", "all-in-one"},
    /* dA has 192 different numbers, all tokens the same */
    {"{'name':'habit-repeated-output-0','layer':'dense','tokens':384,'d_model':64,"
     "'d_expert':192,'precision':'f32','input':{'source':'normal','seed':205}}",
     "f16", "fused"},
    /* dw of equal terms, summed as exactly as we sum, and more so */
    {"{'name':'habit-repeated-output-0','rule':'ec','tokens':384,'d_model':64,'d_expert':96,"
     "'experts':6,'gate':'softmax','shared':false,'precision':'f32',"
     "'input':{'source':'normal','seed':203}}",
     "f64", "tree"},
};
enum { STRANGE_LAYERS = sizeof strange_layers / sizeof *strange_layers };

#endif
