"""The model of `etref bench --model` in PyTorch, as one would write it: for bench-torch.

Bytes, 4 layers, d 128, 2 heads of 64, sequences of 256; feed-forward layers dense (the first, 4d) or of
16 experts of 2d and a shared one under expert choice; AdamW for wte, head and routers, Muon for the rest,
each expert's matrices by themselves, all experts of a layer in one batched product.
"""
import torch
import torch.nn.functional as F

V, d, layers, heads, T, B, n, h = 256, 128, 4, 2, 256, 8, 16, 256
e, k = d // heads, B * T // n


def norm(x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)


def feed_forward(x, up, down):
    return torch.relu(x @ up.T).square() @ down.T


def orthogonalised(u):
    """Of matrices [.., rows, columns]."""
    x = u / (u.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, rate=0.02, momentum=0.95):
        super().__init__(parameters, {"rate": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            mu = group["momentum"]
            for w in group["params"]:
                m = self.state[w].setdefault("m", torch.zeros_like(w))
                m.lerp_(w.grad, 1 - mu)
                x = orthogonalised(w.grad.lerp(m, mu))
                w.add_(x, alpha=-group["rate"] * max(1, w.shape[-2] / w.shape[-1]) ** 0.5)


class Layer:
    def __init__(self, matrix, dense):
        self.qkv, self.o = matrix(3 * d, d), matrix(d, d)
        self.router = None if dense else matrix(n, d)
        if dense:
            self.up, self.down = matrix(4 * d, d), matrix(d, 4 * d)
        else:
            self.up, self.down = matrix(n, h, d), matrix(n, d, h)
            self.shared_up, self.shared_down = matrix(h, d), matrix(d, h)

    def attention(self, x, cosine, sine, above):
        q, key, v = (x @ self.qkv.T).view(B, T, 3, heads, e).permute(2, 0, 3, 1, 4)

        def turned(u):
            u1, u2 = u[..., :e // 2], u[..., e // 2:]
            return norm(torch.cat((u1 * cosine + u2 * sine, u2 * cosine - u1 * sine), -1))

        scores = (turned(q) @ turned(key).mT) / e ** 0.5
        o = torch.softmax(scores.masked_fill(above, -torch.inf), -1) @ v
        return o.transpose(1, 2).reshape(B * T, d) @ self.o.T

    def feed_forward(self, x):
        if self.router is None:
            return feed_forward(x, self.up, self.down)
        p = torch.sigmoid(x @ self.router.T)
        chosen = torch.topk(p.detach().T, k, dim=1).indices
        y = feed_forward(x, self.shared_up, self.shared_down)
        for i in range(n):
            rows = chosen[i]
            part = feed_forward(x.index_select(0, rows), self.up[i], self.down[i])
            y = y.index_add(0, rows, part * p[rows, i, None])
        return y


class Model:
    tokens = B * T

    def __init__(self, dtype):
        self.random = torch.Generator().manual_seed(1)

        def matrix(*shape):
            values = torch.randn(*shape, generator=self.random) / shape[-1] ** 0.5
            return values.to(dtype).requires_grad_()

        self.wte, self.head = matrix(V, d), matrix(V, d)
        self.layers = [Layer(matrix, i == 0) for i in range(layers)]
        angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(e // 2) * 2 / e)
        self.cosine, self.sine = angle.cos().to(dtype), angle.sin().to(dtype)
        self.above = torch.ones(T, T, dtype=torch.bool).triu(1)
        routers = [layer.router for layer in self.layers if layer.router is not None]
        matrices = [w for layer in self.layers for w in vars(layer).values() if w is not None]
        self.adamw = torch.optim.AdamW(
            [{"params": [self.wte], "lr": 0.49}, {"params": [self.head] + routers, "lr": 0.0098}],
            betas=(0.9, 0.95), eps=1e-10, weight_decay=0)
        self.muon = Muon([w for w in matrices if not any(w is router for router in routers)])
        self.parameters = [self.wte, self.head] + matrices

    def loss(self, tokens):
        x = norm(self.wte[tokens[:, :-1].reshape(-1)])
        for layer in self.layers:
            x = x + layer.attention(norm(x), self.cosine, self.sine, self.above)
            x = x + layer.feed_forward(norm(x))
        logits = 15 * torch.tanh(norm(x) @ self.head.T / 15)
        return F.cross_entropy(logits, tokens[:, 1:].reshape(-1))

    def step(self):
        """A step of training on tokens that are drawn as the bench's are."""
        tokens = (torch.rand(B, T + 1, generator=self.random) ** 3 * V).long()
        for w in self.parameters:
            w.grad = None
        self.loss(tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adamw.step()
        self.muon.step()
